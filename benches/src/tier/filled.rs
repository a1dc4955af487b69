//! A small tier on a device, filled with random bytes, and where to read them from.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};

use dma::{Buffer, HugePages, Pool, SizeClass, Source};
use extent::checksum::crc32c_blocks;
use extent::{ExtentIndex, FileId, FileName, Kind, Result, SourceVersion};
use nvme_tier::device::{Command, Device, Driver, Location, Media, MediaOptions, Token};
use nvme_tier::{Done, FileGeneration, FormatOptions, Ledger, Tier, TierOptions, format, recover};

use crate::files::Random;

/// Bytes of a read, and of what one checksum covers.
pub(crate) const BLOCK_BYTES: u32 = 4096;
const EXTENT_BYTES: u64 = 256 << 10;
const FILES: u64 = 64;
const EXTENTS_PER_FILE: u32 = 16;
/// Reads that are drawn beforehand, and repeated: of as many bytes as no cache holds.
const DRAWS: usize = 1 << 16;
const QUEUE_DEPTH: usize = 16;

/// A tier with 256 MiB of random bytes.
pub(crate) struct Filled {
    /// Its device.
    pub(crate) media: Media,
    /// Its index.
    pub(crate) tier: Arc<Tier>,
    /// Blocks of it in random order.
    pub(crate) draws: Vec<Draw>,
}

/// A block of a file, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) file: FileId,
    pub(crate) extent: ExtentIndex,
    /// Within the extent.
    pub(crate) block: u32,
    pub(crate) at: Location,
}

impl Filled {
    /// Formats a device, which destroys what is there, and fills it.
    ///
    /// # Errors
    /// The device's; [`Kind::NoSpace`] if it is too small.
    pub(crate) fn make(path: &Path, driver: Driver) -> Result<Self> {
        let media = Media::open_by(&[(path.to_owned(), driver)], MediaOptions::default())?;
        let mut queue = media.queue(QUEUE_DEPTH)?;
        let bytes = usize::try_from(EXTENT_BYTES).expect("an extent fits the address space");
        let pool = Pool::new(&[SizeClass { bytes, count: QUEUE_DEPTH }], HugePages::Try)?;
        let options = FormatOptions { extent_bytes: EXTENT_BYTES, ..FormatOptions::default() };
        format(&mut *queue, &pool, &options)?;
        let recovered = recover(&mut *queue, &pool, TierOptions::default())?;
        let tier = recovered.tier;
        let data = media.queue(QUEUE_DEPTH)?;
        let mut filler =
            Filler { tier: &tier, ledger: recovered.ledger, queue, data, random: Random::new(9) };
        let mut files = Vec::new();
        for number in 0..FILES {
            let name = FileName::new("bench", format!("{number:04}.bin"))?;
            files.push(filler.fill(name, &pool)?);
        }
        let draws = draw(&files)?;
        Ok(Self { media, tier, draws })
    }
}

/// What puts bytes into a tier, as a promote does.
struct Filler<'a> {
    tier: &'a Arc<Tier>,
    ledger: Ledger,
    /// The ledger's.
    queue: Box<dyn Device>,
    data: Box<dyn Device>,
    random: Random,
}

impl Filler<'_> {
    fn fill(&mut self, name: FileName, pool: &Pool) -> Result<Arc<FileGeneration>> {
        let version = SourceVersion::new("1")?;
        let length = u64::from(EXTENTS_PER_FILE) * EXTENT_BYTES;
        let file = self.ask(|tier, done| tier.register(name, length, version, done))?;
        let generation = file.newest();
        for index in (0..EXTENTS_PER_FILE).map(ExtentIndex) {
            let reservation = self.ask(|tier, done| tier.reserve(&generation, index, done))?;
            let bytes = reservation.length() as usize;
            let mut buffer = pool.take(bytes).expect("one is written at a time");
            for word in buffer.as_mut_slice()[..bytes].chunks_exact_mut(8) {
                word.copy_from_slice(&self.random.next().to_le_bytes());
            }
            let sums = crc32c_blocks(&buffer.as_slice()[..bytes], BLOCK_BYTES as usize).collect();
            self.write(reservation.at(), buffer, bytes)?;
            self.ask(|tier, done| tier.publish(reservation, sums, done))?;
        }
        Ok(generation)
    }

    fn write(&mut self, at: Location, buffer: Buffer, bytes: usize) -> Result<()> {
        let from = Source::Buffer(buffer, 0..bytes);
        if self.data.submit(Token(0), Command::Write { at, from }).is_err() {
            return Err(Kind::Busy.error("a queue is full with nothing in flight"));
        }
        let mut completions = Vec::new();
        while completions.is_empty() {
            self.data.gather(1)?;
            self.data.poll(&mut completions);
        }
        completions.into_iter().try_for_each(|completion| completion.result)
    }

    /// Asks the tier for something, and works until it is done.
    fn ask<T: Send + 'static>(&mut self, begin: impl FnOnce(&Tier, Done<T>)) -> Result<T> {
        let (tell, told) = sync_channel(1);
        let done = Done::new(move |result| {
            // Nobody listens any more only after an error, which is reported.
            let _ = tell.send(result);
        });
        begin(self.tier, done);
        loop {
            match told.try_recv() {
                Ok(result) => return result,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    return Err(Kind::Io.error("the ledger forgot an operation"));
                }
            }
            if !self.ledger.step(&mut *self.queue) {
                self.queue.sleep(&[], None)?;
            }
        }
    }
}

/// Blocks of files, each as likely as the others.
fn draw(files: &[Arc<FileGeneration>]) -> Result<Vec<Draw>> {
    let mut random = Random::new(10);
    let blocks = EXTENT_BYTES / u64::from(BLOCK_BYTES);
    let mut below = |bound: u64| u32::try_from(random.below(bound)).expect("small numbers");
    let mut draws = Vec::with_capacity(DRAWS);
    while draws.len() < DRAWS {
        let generation = &files[below(files.len() as u64) as usize];
        let (index, block) = (ExtentIndex(below(EXTENTS_PER_FILE.into())), below(blocks));
        let extent = generation.extent(index).ok_or_else(missing)?;
        let offset = extent.at().offset + u64::from(block) * u64::from(BLOCK_BYTES);
        let at = Location { offset, ..extent.at() };
        draws.push(Draw { file: generation.file_id(), extent: index, block, at });
    }
    Ok(draws)
}

/// What was filled is gone.
pub(crate) fn missing() -> extent::Error {
    Kind::NotResident.error("an extent that was filled is not in the index")
}
