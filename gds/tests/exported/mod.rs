//! Exported memory whose stand-in for a dma-buf is a sealed file: others may map it.

use std::sync::Arc;

use dma::{Region, Window, page_bytes};
use forebay_gds::Device;

/// Writes to it as another device would, and looks at it as the device does.
pub(crate) fn check_written(device: &Device) {
    let page = page_bytes();
    let memory = device.allocate(5 * page + 77).expect("device memory");
    let before = memory.all().to_vec().expect("read back");
    let exported = device.export(&memory.all().allocation().expect("there")).expect("exported");
    assert_eq!((exported.address(), exported.length()), (memory.pointer().0, 5 * page));
    let end = usize::try_from(exported.offset()).expect("small") + exported.length();
    let mapped = Region::sealed_memfd(exported.file(), end).expect("a file that stays as long");
    let window = Window::new(Arc::clone(&mapped), exported.offset() + 4321, 100);
    window.expect("inside").copy_in(&[7; 100]);
    device.flush_writes().expect("it takes it in");
    let mut expected = before;
    expected[4321..4421].fill(7);
    assert!(memory.all().to_vec().expect("read back") == expected);
    // It is still there for who has it, and no memory of the device's.
    drop(memory);
    let window = Window::new(mapped, exported.offset() + 4321, 100).expect("inside");
    let mut found = [0; 100];
    window.copy_out(&mut found);
    assert_eq!(found, [7; 100]);
}
