//! Reads files back from the node and compares every byte with where they came from.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Client, Endpoint, Fetched, Memory, Options};
use extent::wire::{Landing, Served};
use extent::{Error, FileName, Kind, Result};
use hdrhistogram::Histogram;

use super::source::SourceFile;
use crate::clock;

/// Bytes of one read.
const CHUNK_BYTES: usize = 1 << 20;
/// Reads in flight at once.
const WINDOW: usize = 16;
/// Mismatches that are named; all are counted.
const NAMED: usize = 5;
/// A read that takes longer counts as this long: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// Files of one silo, and the directory that their bytes must equal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Corpus<'a> {
    pub(super) silo: &'static str,
    pub(super) directory: &'a Path,
    pub(super) files: &'a [SourceFile],
}

/// What reading a corpus showed.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) bytes: u64,
    /// Opening and reading, without comparing.
    pub(super) busy: Duration,
    pub(super) latency: Histogram<u64>,
    pub(super) reads: u64,
    pub(super) hits: u64,
    pub(super) recalls: u64,
    landings: [u64; LANDINGS.len()],
    pub(super) mismatches: u64,
    pub(super) mismatched: Vec<String>,
}

const LANDINGS: [(Landing, &str); 5] = [
    (Landing::Direct, "direct"),
    (Landing::Copied, "copied"),
    (Landing::Rdma, "rdma"),
    (Landing::Stream, "stream"),
    (Landing::Nothing, "nothing"),
];

impl Reading {
    pub(super) fn new() -> Self {
        Self {
            bytes: 0,
            busy: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("fixed bounds"),
            reads: 0,
            hits: 0,
            recalls: 0,
            landings: [0; LANDINGS.len()],
            mismatches: 0,
            mismatched: Vec::new(),
        }
    }

    /// Which ways the bytes came, most used first, with their shares.
    pub(super) fn path(&self) -> String {
        let mut used: Vec<(u64, &str)> = self
            .landings
            .iter()
            .zip(LANDINGS)
            .filter(|(count, _)| **count > 0)
            .map(|(count, (_, name))| (*count, name))
            .collect();
        used.sort_unstable_by(|a, b| b.cmp(a));
        if let [(_, only)] = used[..] {
            return only.to_owned();
        }
        let share = |count: u64| count * 100 / self.reads.max(1);
        let parts = used.iter().map(|(count, name)| format!("{name} {} %", share(*count)));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// Both together.
    pub(super) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.busy += other.busy;
        self.latency.add(&other.latency).expect("both have the same bounds");
        self.reads += other.reads;
        self.hits += other.hits;
        self.recalls += other.recalls;
        for (mine, others) in self.landings.iter_mut().zip(other.landings) {
            *mine += others;
        }
        self.mismatches += other.mismatches;
        let room = NAMED.saturating_sub(self.mismatched.len());
        self.mismatched.extend(other.mismatched.into_iter().take(room));
    }

    fn note(&mut self, fetched: &Fetched, elapsed: Duration) -> Result<u64> {
        let read = match &fetched.result {
            Ok(read) => read,
            Err(error) => return Err(error.duplicate()),
        };
        self.reads += 1;
        self.bytes += read.bytes;
        self.latency.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        match read.served {
            Served::Tier => self.hits += 1,
            Served::Recall | Served::Arriving => self.recalls += 1,
            Served::Nothing | Served::Repair => {}
        }
        if let Some(place) = LANDINGS.iter().position(|(landing, _)| *landing == read.landing) {
            self.landings[place] += 1;
        }
        Ok(read.bytes)
    }

    fn mismatch(&mut self, what: String) {
        self.mismatches += 1;
        if self.mismatched.len() < NAMED {
            self.mismatched.push(what);
        }
    }
}

/// A client with memory to read into.
pub(super) struct Reader {
    client: Client,
    memories: Vec<Memory>,
}

/// A piece of a file under way.
struct Piece {
    file: usize,
    offset: u64,
    length: usize,
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// As [`Client::connect`] and [`Client::alloc`].
    pub(super) fn connect(endpoint: &Endpoint) -> Result<Self> {
        let client = Client::connect(endpoint, &Options::default())?;
        let mut rest = client.alloc(CHUNK_BYTES * WINDOW)?;
        let mut memories = Vec::with_capacity(WINDOW);
        while rest.len() > CHUNK_BYTES {
            let tail = rest.split_off(CHUNK_BYTES);
            memories.push(std::mem::replace(&mut rest, tail));
        }
        memories.push(rest);
        Ok(Self { client, memories })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Reads and compares all of a corpus, or until `stop`. `progress` hears of bytes compared.
    ///
    /// # Errors
    /// If the node or the directory cannot be read; a mismatch is not an error but counted.
    pub(super) fn read_back(
        &mut self,
        corpus: Corpus<'_>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Reading> {
        let mut reading = Reading::new();
        let mut pieces = pieces(corpus.files).peekable();
        while pieces.peek().is_some() && !stop.load(Ordering::Relaxed) {
            let window: Vec<Piece> = pieces.by_ref().take(WINDOW).collect();
            self.read_window(corpus, &window, &mut reading)?;
            progress(reading.bytes);
        }
        Ok(reading)
    }

    fn read_window(
        &mut self,
        corpus: Corpus<'_>,
        window: &[Piece],
        reading: &mut Reading,
    ) -> Result<()> {
        let begin = clock::now();
        let mut fetches = Vec::with_capacity(window.len());
        let mut opened: Option<(usize, client::File)> = None;
        for piece in window {
            if opened.as_ref().is_none_or(|(index, _)| *index != piece.file) {
                let name = FileName::new(corpus.silo, corpus.files[piece.file].key.as_str())?;
                opened = Some((piece.file, self.client.open(&name)?));
            }
            let (_, file) = opened.as_ref().expect("opened above");
            let mut memory = self.memories.pop().expect("as many as a window has pieces");
            // What the last user left must not pass for what the node should have read.
            memory.as_mut_slice().fill(0xee);
            fetches.push(file.fetch(piece.offset, memory));
        }
        let opening = begin.elapsed();
        let begin = clock::now();
        let mut results = Vec::with_capacity(window.len());
        for (place, fetched) in self.client.read_batch(fetches) {
            results.push((place, reading.note(&fetched, begin.elapsed())?, fetched.memory));
        }
        reading.busy += opening + begin.elapsed();
        let mut source = SourceReader::default();
        for (place, bytes, memory) in results {
            let piece = &window[place];
            let file = &corpus.files[piece.file];
            let expected = source.read(corpus.directory, file, piece.offset, piece.length)?;
            if bytes != piece.length as u64 || memory.as_slice()[..piece.length] != *expected {
                reading.mismatch(format!("{}/{} at {}", corpus.silo, file.key, piece.offset));
            }
            self.memories.push(memory);
        }
        Ok(())
    }
}

fn pieces(files: &[SourceFile]) -> impl Iterator<Item = Piece> {
    files.iter().enumerate().flat_map(|(file, source)| {
        (0..source.length).step_by(CHUNK_BYTES).map(move |offset| {
            let left = usize::try_from(source.length - offset).unwrap_or(CHUNK_BYTES);
            Piece { file, offset, length: left.min(CHUNK_BYTES) }
        })
    })
}

/// The originals, one open at a time.
#[derive(Default)]
struct SourceReader {
    open: Option<(String, File)>,
    bytes: Vec<u8>,
}

impl SourceReader {
    fn read(
        &mut self,
        directory: &Path,
        source: &SourceFile,
        offset: u64,
        length: usize,
    ) -> Result<&[u8]> {
        let context = || format!("reading the original of {}", source.key);
        if self.open.as_ref().is_none_or(|(key, _)| *key != source.key) {
            let file = File::open(directory.join(&source.key));
            let file = file.map_err(|e| Error::io(context(), e))?;
            self.open = Some((source.key.clone(), file));
        }
        let (_, file) = self.open.as_ref().expect("opened above");
        self.bytes.resize(length, 0);
        file.read_exact_at(&mut self.bytes, offset).map_err(|e| {
            Kind::Stale
                .error(format!("{}: it changed while the demo ran; run it again", context()))
                .caused_by(e)
        })?;
        Ok(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_files_exactly() {
        let file = |key: &str, length| SourceFile { key: key.to_owned(), length };
        let files = [file("a", 1), file("b", 2 << 20), file("c", (1 << 20) + 5)];
        let all: Vec<_> = pieces(&files).map(|p| (p.file, p.offset, p.length)).collect();
        let mib = 1 << 20;
        assert_eq!(
            all,
            [(0, 0, 1), (1, 0, mib), (1, mib as u64, mib), (2, 0, mib), (2, mib as u64, 5)]
        );
    }

    #[test]
    fn paths_tell_their_shares() {
        let mut reading = Reading::new();
        reading.reads = 4;
        reading.landings[0] = 3;
        assert_eq!(reading.path(), "direct");
        reading.landings[1] = 1;
        assert_eq!(reading.path(), "direct 75 %, copied 25 %");
    }
}
