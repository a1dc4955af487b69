//! Files to measure with.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use extent::{Error, Kind, Result};

use crate::sys;

const CHUNK_BYTES: usize = 1 << 20;

/// Random numbers that are the same for the same seed: splitmix64 (Steele, Lea and Flood,
/// OOPSLA 2014).
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Writes a file of bytes that do not compress, and makes it durable.
///
/// # Errors
/// [`Kind::Io`], [`Kind::NoSpace`].
pub fn write_random(path: &Path, length: u64, seed: u64) -> Result<()> {
    let doing = |e| Error::io(format!("writing {}", path.display()), e);
    let file = File::create(path).map_err(doing)?;
    let mut out = BufWriter::with_capacity(CHUNK_BYTES, file);
    let mut random = Random::new(seed);
    let mut left = length;
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(length).unwrap_or(CHUNK_BYTES)).max(8)];
    while left != 0 {
        for word in chunk.chunks_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
        }
        let now = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        out.write_all(&chunk[..now]).map_err(doing)?;
        left -= now as u64;
    }
    out.into_inner().map_err(|e| doing(e.into_error()))?.sync_data().map_err(doing)
}

/// Makes a file of zeroes that takes no room.
///
/// # Errors
/// [`Kind::Io`].
pub fn write_sparse(path: &Path, length: u64) -> Result<()> {
    let doing = |e| Error::io(format!("making {}", path.display()), e);
    let file = File::create(path).map_err(doing)?;
    file.set_len(length).map_err(doing)
}

/// Makes a tree like that of a data set: nine files in ten are small (1 to 256 KiB, most of them
/// at the lower end), the rest are shards of some megabytes, and those hold most of the bytes.
/// Some 40 files to a directory. Returns how many files there are.
///
/// # Errors
/// [`Kind::Io`], [`Kind::NoSpace`].
pub fn write_tree(root: &Path, total_bytes: u64, seed: u64) -> Result<usize> {
    let mut random = Random::new(seed);
    let mut left = total_bytes;
    let mut count = 0;
    while left != 0 {
        let directory = root.join(format!("part-{:04}", count / 40));
        fs::create_dir_all(&directory)
            .map_err(|e| Error::io(format!("making {}", directory.display()), e))?;
        let length = tree_file_bytes(&mut random).min(left);
        write_unsynced(&directory.join(format!("{count:06}.bin")), length, random.next())?;
        left -= length;
        count += 1;
    }
    let root = File::open(root).map_err(|e| Error::io("opening the tree", e))?;
    sys::sync_file_system(&root).map_err(|e| Error::io("making the tree durable", e))?;
    Ok(count)
}

fn tree_file_bytes(random: &mut Random) -> u64 {
    if random.below(10) == 0 {
        (2 << 20) + random.below(30 << 20)
    } else {
        // Every size from 1 KiB to 256 KiB, each doubling as likely as the next.
        let scale = 1024 << random.below(8);
        scale + random.below(scale)
    }
}

fn write_unsynced(path: &Path, length: u64, seed: u64) -> Result<()> {
    let doing = |e| Error::io(format!("writing {}", path.display()), e);
    let length = usize::try_from(length).map_err(|_| Kind::Invalid.error("a file too long"))?;
    let mut random = Random::new(seed);
    let mut bytes = vec![0; length];
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
    }
    fs::write(path, bytes).map_err(doing)
}

/// All files below a directory, and their bytes together.
///
/// # Errors
/// [`Kind::Io`].
pub fn list(root: &Path) -> Result<(Vec<PathBuf>, u64)> {
    let doing = |e| Error::io(format!("listing {}", root.display()), e);
    let mut files = Vec::new();
    let mut bytes = 0;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(doing)? {
            let entry = entry.map_err(doing)?;
            let kind = entry.file_type().map_err(doing)?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                bytes += entry.metadata().map_err(doing)?.len();
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok((files, bytes))
}

/// Makes sure that the next read of everything below a path (a file or a directory) comes from
/// the device: its pages leave the page cache, and as root all others' and the names' do too.
///
/// # Errors
/// [`Kind::Io`].
pub fn make_cold(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
    sys::sync_file_system(&file).map_err(|e| Error::io("syncing", e))?;
    let files = if path.is_dir() { list(path)?.0 } else { vec![path.to_owned()] };
    for path in files {
        let doing = |e| Error::io(format!("forgetting the pages of {}", path.display()), e);
        sys::forget_pages(&File::open(&path).map_err(doing)?).map_err(doing)?;
    }
    // Only root may, and a container's root perhaps not: the advice above does the most of it.
    let everything = OpenOptions::new().write(true).open("/proc/sys/vm/drop_caches");
    if let Ok(mut caches) = everything {
        let _ = caches.write_all(b"3\n");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_have_their_size_and_mix() {
        let directory = tempfile::tempdir().expect("a directory");
        let count = write_tree(directory.path(), 64 << 20, 5).expect("room");
        let (files, bytes) = list(directory.path()).expect("listed");
        assert_eq!((files.len(), bytes), (count, 64 << 20));
        let small = files.iter().filter(|f| f.metadata().expect("there").len() <= 512 << 10);
        assert!(small.count() * 2 > count);
        make_cold(directory.path()).expect("cold");
    }

    #[test]
    fn random_files_have_their_length() {
        let directory = tempfile::tempdir().expect("a directory");
        for length in [0, 5, 3 << 20, (1 << 20) + 7] {
            let path = directory.path().join("f");
            write_random(&path, length, 1).expect("room");
            assert_eq!(fs::metadata(&path).expect("there").len(), length);
        }
    }
}
