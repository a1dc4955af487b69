//! Reading what a device holds before there is a tier on it.

use dma::{HugePages, Pool, SizeClass, Target};
use extent::{Kind, Result};

use super::{Command, Device, DeviceIndex, Location, Token};

/// Commands in flight at once.
pub(super) const DEPTH: usize = 1;

/// Bytes of one read: a multiple of every block.
const PIECE_BYTES: usize = 64 << 10;

/// `length` bytes from `offset` on, which need not be at blocks' edges.
pub(super) fn read(
    queue: &mut dyn Device,
    device: DeviceIndex,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>> {
    let end = offset + length;
    let capacity = queue.geometry(device).capacity_bytes;
    let pool = Pool::new(&[SizeClass { bytes: PIECE_BYTES, count: 1 }], HugePages::Never)?;
    let mut bytes = Vec::new();
    let mut at = offset - offset % PIECE_BYTES as u64;
    while at < end {
        let piece = usize::try_from(capacity - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let buffer = pool.take(PIECE_BYTES).expect("the one before was given back");
        let into = Target::Buffer(buffer, 0..piece);
        let command = Command::Read { at: Location { device, offset: at }, into };
        let Command::Read { into, .. } = run(queue, command)? else {
            return Err(Kind::Io.error("a read came back as another command"));
        };
        let buffer = into.into_buffer().expect("it was a buffer");
        bytes.extend_from_slice(&buffer.as_slice()[..piece]);
        at += piece as u64;
    }
    let skipped = usize::try_from(offset % PIECE_BYTES as u64).expect("less than a piece");
    bytes.drain(..skipped);
    bytes.truncate(usize::try_from(length).expect("a part that fits into memory"));
    Ok(bytes)
}

fn run(queue: &mut dyn Device, command: Command) -> Result<Command> {
    if queue.submit(Token(0), command).is_err() {
        return Err(Kind::Busy.error("a queue with nothing in flight is full"));
    }
    queue.kick()?;
    let mut completions = Vec::with_capacity(1);
    loop {
        queue.poll(&mut completions);
        if let Some(completion) = completions.pop() {
            return completion.result.map(|()| completion.command);
        }
        queue.sleep(&[], None)?;
    }
}
