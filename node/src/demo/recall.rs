//! Reading what was let go, while others read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use client::Endpoint;
use extent::{Kind, Result};

use super::reader::{Corpus, Reader, Reading};
use super::source::SourceFile;

/// Every such file is released.
const EVERY: usize = 4;
const MOST: usize = 64;

/// Which files are released, and the rest.
pub(super) fn split(files: &[SourceFile]) -> (Vec<SourceFile>, Vec<SourceFile>) {
    let mut released = Vec::new();
    let mut rest = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let chosen = index % EVERY == 0 && released.len() < MOST;
        if chosen { released.push(file.clone()) } else { rest.push(file.clone()) }
    }
    (released, rest)
}

/// Does `work` while another client reads `corpus` over and over, comparing every byte, and
/// returns what both read. The other client has read at least once when this returns.
///
/// # Errors
/// What either says.
pub(super) fn among_readers(
    endpoint: &Endpoint,
    corpus: Corpus<'_>,
    work: impl FnOnce() -> Result<Reading>,
) -> Result<(Reading, Reading)> {
    let mut other = Reader::connect(endpoint)?;
    let (never, over) = (AtomicBool::new(false), AtomicBool::new(corpus.files.is_empty()));
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut all = other.read_back(corpus, &never, &mut |_| {})?;
            while !over.load(Ordering::Relaxed) {
                all.add(other.read_back(corpus, &over, &mut |_| {})?);
            }
            Ok(all)
        });
        let worked = work();
        over.store(true, Ordering::Relaxed);
        let others: Result<Reading> =
            reading.join().map_err(|_| Kind::Io.error("a reading thread panicked"))?;
        Ok((worked?, others?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_goes_and_nothing_is_lost() {
        let files: Vec<SourceFile> =
            (0..9).map(|n| SourceFile { key: n.to_string(), length: n + 1 }).collect();
        let (released, rest) = split(&files);
        let keys: Vec<&str> = released.iter().map(|file| file.key.as_str()).collect();
        assert_eq!(keys, ["0", "4", "8"]);
        assert_eq!(rest.len(), 6);
        let (released, rest) = split(&files[..1]);
        assert_eq!((released.len(), rest.len()), (1, 0), "one file is released whole");
    }
}
