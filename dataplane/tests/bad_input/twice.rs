//! A file that is kept twice, and what may happen to either of its copies.
#![allow(dead_code, reason = "each test file uses a part of it")]

use extent::wire::OpenMode;
use extent::{FileName, Generation, Result};
use nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, When};
use nvme_tier::device::{DeviceIndex, Location};

use crate::lab::{EXTENT_BYTES, Lab, contents};

const NEWEST: OpenMode = OpenMode::Read(Generation(0));
pub(crate) const BYTES: usize = EXTENT_BYTES + 9000;
const BLOCK: usize = 4096;

pub(crate) fn name(text: &str) -> FileName {
    text.parse().expect("a name")
}

pub(crate) async fn write(lab: &Lab, file: &str, seed: u64) -> Result<()> {
    let mut client = lab.client();
    let handle = client.open(&name(file), OpenMode::Write(BYTES as u64)).await?;
    client.write(handle, 0, &contents(seed, BYTES)).await?;
    client.commit(handle, BYTES as u64).await
}

pub(crate) async fn read(lab: &Lab, file: &str) -> Result<Vec<u8>> {
    let mut client = lab.client();
    let handle = client.open(&name(file), NEWEST).await?;
    Ok(client.read(handle, 0, BYTES).await?.0)
}

/// A node that keeps a file twice: `data/dirty`, of contents 7.
pub(crate) async fn furnished() -> Lab {
    let lab = Lab::twice(6 << 20);
    write(&lab, "data/dirty", 7).await.expect("committed");
    lab
}

/// Where a block of the file stands on a device.
fn place(lab: &Lab, device: u16, block: usize) -> Location {
    let bytes = contents(7, BYTES);
    let probe = &bytes[block * BLOCK..][..64];
    let at = |offset| Location { device: DeviceIndex(device), offset };
    let offsets = (1 << 20..lab.disk.options().capacity_bytes - 64).step_by(BLOCK);
    let mut found = offsets.map(at).filter(|at| lab.disk.peek(*at, 64) == probe);
    let first = found.next().expect("it is there");
    assert_eq!(found.next(), None, "and once");
    first
}

pub(crate) fn rot(lab: &Lab, device: u16, block: usize) {
    let at = place(lab, device, block);
    // Not what it is found by.
    let at = Location { offset: at.offset + 1000, ..at };
    let byte = lab.disk.peek(at, 1)[0];
    lab.disk.poke(at, &[byte ^ 4]);
}

pub(crate) fn vanish(lab: &Lab, device: u16) {
    let rule = FaultRule::new(Operation::Any, When::From(1), Fault::Vanish);
    lab.disk.set_faults(FaultPlan::new().with(rule.on(DeviceIndex(device))));
}

/// Whether the block on a device is as it was written.
pub(crate) fn holds(lab: &Lab, device: u16, block: usize) -> bool {
    let bytes = contents(7, BYTES);
    let length = BLOCK.min(BYTES - block * BLOCK);
    lab.disk.peek(place(lab, device, block), length) == bytes[block * BLOCK..][..length]
}

/// Either copy may rot, and either device be lost: what is read is right.
pub(crate) async fn either_is_enough() {
    for device in [0, 1] {
        let lab = furnished().await;
        rot(&lab, device, 3);
        assert!(read(&lab, "data/dirty").await.expect("the other one") == contents(7, BYTES));
        let lab = furnished().await;
        vanish(&lab, device);
        assert!(read(&lab, "data/dirty").await.expect("the other one") == contents(7, BYTES));
    }
}
