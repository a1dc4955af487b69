//! What is on the heap, in huge pages.
#![allow(unsafe_code)]

use std::fs;

/// What is smaller is not worth it.
const LEAST_BYTES: usize = 16 << 20;

/// Asks the kernel to put what is on the process's heap now into huge pages (2 MiB), so that tables of
/// many small objects are reached through few entries of the processor's. Returns how many bytes the kernel
/// says it has gone through; none before Linux 6.1, or where huge pages are off. It copies, at memory's
/// speed: for once, after much was read in.
pub fn merge_heap() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter_map(heap)
        .filter(|(base, bytes)| collapse(*base, *bytes))
        .map(|(_, b)| b)
        .sum()
}

/// Where a mapping begins and how long it is, if it is the heap's and large.
fn heap(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let (mode, name) = (fields.next()?, fields.nth(3));
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (from, to) = (address(from)?, address(to)?);
    let ours = mode == "rw-p" && name == Some("[heap]");
    (ours && to - from >= LEAST_BYTES).then(|| (from, to - from))
}

fn collapse(base: usize, bytes: usize) -> bool {
    let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(base);
    // SAFETY: it changes which pages hold the memory, and nothing that is in it.
    unsafe { libc::madvise(address, bytes, libc::MADV_COLLAPSE) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_heap_is_taken() {
        let line =
            |mode: &str, name: &str| format!("10000000-20000000 {mode} 00000000 00:00 0 {name}");
        assert_eq!(heap(&line("rw-p", "      [heap]")), Some((0x1000_0000, 0x1000_0000)));
        for (mode, name) in [("rw-p", ""), ("rw-p", "[stack]"), ("r--p", "[heap]"), ("rw-s", "/x")]
        {
            assert_eq!(heap(&line(mode, name)), None, "{mode} {name}");
        }
        assert_eq!(heap("10000000-10001000 rw-p 00000000 00:00 0 [heap]"), None, "too small");
        assert_eq!(heap("nonsense"), None);
    }

    #[test]
    fn what_is_on_the_heap_stays_as_it_is() {
        let values: Vec<Box<usize>> = (0..1_000_000).map(Box::new).collect();
        merge_heap();
        assert!(values.iter().enumerate().all(|(at, value)| at == **value));
    }
}
