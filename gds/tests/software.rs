//! What every device must do, done by the software device.

mod exported;
mod suite;

use extent::Kind;
use forebay_gds::{Device, SoftwareDevice};
use suite::CHECKS;

#[test]
fn what_every_device_does_the_software_device_does() {
    for seed in 0..2 {
        for (name, check) in CHECKS {
            for software in
                [SoftwareDevice::new(256 << 20, seed), SoftwareDevice::exporting(256 << 20, seed)]
            {
                check(&Device::software(&software));
                assert_eq!(software.left_behind(), (0, 0, 0), "left behind by {name}");
                assert_eq!(software.overtaken_copies(), 0, "{name}");
            }
        }
    }
}

#[test]
fn what_others_write_to_exported_memory_the_device_has() {
    let software = SoftwareDevice::exporting(1 << 20, 1);
    exported::check_written(&Device::software(&software));
    let plain = Device::software(&SoftwareDevice::new(1 << 20, 1));
    let memory = plain.allocate(1 << 16).expect("device memory");
    let error = plain.export(&memory.all().allocation().expect("there")).expect_err("it says so");
    assert_eq!((error.kind(), plain.info().dma_buf), (Kind::Unsupported, false));
    assert_eq!(software.left_behind(), (0, 0, 0));
}
