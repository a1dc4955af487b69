//! Transfers over shared memory: a copy by the node's processor.

use dma::{Source, Target, Window};
use extent::{Kind, Result};

use super::regions::Regions;
use crate::Transfer;

/// Between two windows bytes go through here: no slice is ever made of a client's memory.
const BOUNCE_BYTES: usize = 4096;

/// Copies `from` into the client's segments.
///
/// # Errors
/// [`Kind::Invalid`] if the segments are too short or outside the client's regions; nothing is
/// copied then.
pub(super) fn into_client(regions: &Regions, transfer: &Transfer, from: &Source) -> Result<()> {
    let mut done = 0;
    each_part(regions, transfer, from.length(), |window| {
        let range = done..done + window.length();
        done = range.end;
        match from {
            Source::Window(source) => copy_between(&source.part(range), &window),
            _ => window.copy_in(&from.bytes().unwrap_or_default()[range]),
        }
    })
}

/// Copies the client's segments into `into`.
///
/// # Errors
/// As [`into_client`].
pub(super) fn from_client(regions: &Regions, transfer: &Transfer, into: &mut Target) -> Result<()> {
    let mut done = 0;
    each_part(regions, transfer, into.length(), |window| {
        let range = done..done + window.length();
        done = range.end;
        match into {
            Target::Buffer(buffer, whole) => {
                window.copy_out(&mut buffer.as_mut_slice()[whole.clone()][range]);
            }
            Target::Window(target) => copy_between(&window, &target.part(range)),
        }
    })
}

fn each_part(
    regions: &Regions,
    transfer: &Transfer,
    length: usize,
    mut copy: impl FnMut(Window),
) -> Result<()> {
    let parts = || transfer.segments.slice(transfer.at, length as u64);
    let mut covered = 0;
    for part in parts() {
        covered += regions.window(part)?.length();
    }
    if covered != length {
        return Err(Kind::Invalid.error(format!(
            "{length} bytes at {} of segments of {} bytes",
            transfer.at,
            transfer.segments.total_bytes()
        )));
    }
    for part in parts() {
        copy(regions.window(part)?);
    }
    Ok(())
}

fn copy_between(from: &Window, to: &Window) {
    let mut bounce = [0; BOUNCE_BYTES];
    let mut at = 0;
    while at < from.length() {
        let end = from.length().min(at + BOUNCE_BYTES);
        let bytes = &mut bounce[..end - at];
        from.part(at..end).copy_out(bytes);
        to.part(at..end).copy_in(bytes);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use dma::{HugePages, Pool, SizeClass};
    use extent::wire::{Segment, Segments};

    use super::*;
    use crate::Token;
    use crate::shm::sys;

    const ALL: Segment = Segment { address: 0, length: 20_000, key: 1 };

    fn regions() -> Regions {
        let mut regions = Regions::new(2, 1 << 20, true);
        regions.register(1, 20_000, sys::memory_file(20_480).expect("memory")).expect("mapped");
        regions
    }

    fn transfer(at: u64, list: &[(u64, u32)]) -> Transfer {
        let segment = |&(address, length)| Segment { address, length, key: 1 };
        let list: Vec<Segment> = list.iter().map(segment).collect();
        let segments = Segments::from_slice(&list).expect("few");
        Transfer { token: Token(0), tag: 0, segments, at }
    }

    fn pool() -> Pool {
        Pool::new(&[SizeClass { bytes: 20_480, count: 2 }], HugePages::Never).expect("memory")
    }

    #[test]
    fn bytes_are_scattered_and_gathered() {
        let (regions, pool) = (regions(), pool());
        let mut buffer = pool.take(1).expect("free");
        for (index, byte) in buffer.as_mut_slice().iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).expect("small");
        }
        let expected = buffer.as_slice()[5..9005].to_vec();
        let scattered = transfer(100, &[(19_000, 600), (10, 0), (3, 8000), (9000, 1000)]);
        into_client(&regions, &scattered, &Source::Buffer(buffer, 5..9005)).expect("inside");
        let mut target = Target::Buffer(pool.take(1).expect("free"), 7..9007);
        from_client(&regions, &scattered, &mut target).expect("inside");
        let buffer = target.into_buffer().expect("a buffer");
        assert_eq!(buffer.as_slice()[7..9007], expected);
        // The first segment's first 100 bytes were left alone.
        let mut first = [9; 101];
        let window = regions.window(ALL).expect("inside");
        window.part(19_000..19_101).copy_out(&mut first);
        assert_eq!((&first[..100], first[100]), (&[0; 100][..], expected[0]));
        // Between two windows.
        let copied = Target::Window(window.part(10_000..19_000));
        let mut copied_to = copied;
        from_client(&regions, &transfer(0, &[(3, 8000), (9000, 1000)]), &mut copied_to)
            .expect("inside");
        let source = Source::Window(window.part(10_000..18_000));
        into_client(&regions, &transfer(0, &[(0, 8000)]), &source).expect("inside");
        let mut back = vec![0; 8000];
        window.copy_out(&mut back);
        assert_eq!(back, expected[500..8500]);
    }

    #[test]
    fn nothing_is_copied_unless_all_of_it_can_be() {
        let (regions, pool) = (regions(), pool());
        let mut buffer = pool.take(1).expect("free");
        buffer.as_mut_slice().fill(7);
        let source = Source::Buffer(buffer, 0..1000);
        for bad in [
            transfer(0, &[(0, 999)]),
            transfer(1, &[(0, 1000)]),
            transfer(0, &[(0, 500), (19_600, 500)]),
            transfer(0, &[(0, 500), (u64::MAX, 500)]),
        ] {
            assert_eq!(
                into_client(&regions, &bad, &source).expect_err("short").kind(),
                Kind::Invalid
            );
        }
        let mut back = vec![1; 20_000];
        regions.window(ALL).expect("inside").copy_out(&mut back);
        assert!(back.iter().all(|&byte| byte == 0));
    }
}
