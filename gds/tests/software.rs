//! What every device must do, done by the software device.

mod suite;

use forebay_gds::{Device, SoftwareDevice};
use suite::CHECKS;

#[test]
fn what_every_device_does_the_software_device_does() {
    for seed in 0..2 {
        for (name, check) in CHECKS {
            let software = SoftwareDevice::new(256 << 20, seed);
            check(&Device::software(&software));
            assert_eq!(software.left_behind(), (0, 0, 0), "left behind by {name}");
            assert_eq!(software.overtaken_copies(), 0, "{name}");
        }
    }
}
