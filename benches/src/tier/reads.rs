//! Random reads of a filled tier as a shard makes them, and the same by a bare queue.

use dma::{HugePages, Pool, SizeClass, Target};
use extent::{Kind, Result};
use nvme_tier::device::{Command, Completion, Token};
use nvme_tier::{Extent, Tier};

use super::filled::{BLOCK_BYTES, Draw, Filled, missing};
use crate::stream::{Stream, on_core, run};

/// How blocks are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Straight from where they lie, whatever comes back.
    Raw,
    /// By file and extent: looked up, held, and let go.
    Tier {
        /// Whether they are compared with the extent's checksums.
        verified: bool,
    },
}

/// How many reads are in flight and from where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) way: Way,
    pub(crate) depth: usize,
    /// How many must have ended before others are handed over.
    pub(crate) batch: usize,
    pub(crate) seconds: u64,
    pub(crate) core: usize,
}

impl Filled {
    /// Reads for a while. How many a second.
    ///
    /// # Errors
    /// The device's; [`Kind::Corrupt`] if a block is not what was written.
    pub(crate) fn read(&self, terms: Terms) -> Result<f64> {
        on_core(Some(terms.core), || self.measure(terms))
    }

    fn measure(&self, terms: Terms) -> Result<f64> {
        let block = BLOCK_BYTES as usize;
        let pool = Pool::new(&[SizeClass { bytes: block, count: terms.depth }], HugePages::Try)?;
        let targets = (0..terms.depth)
            .map(|_| pool.take(block).expect("as many buffers as reads"))
            .map(|buffer| Target::Buffer(buffer, 0..block))
            .collect();
        let draws = self.draws.iter().cycle();
        let Terms { batch, seconds, .. } = terms;
        let loaded = match terms.way {
            Way::Raw => {
                let mut reads = RawReads { draws };
                let mut queue = self.media.queue(terms.depth)?;
                queue.register(pool.region())?;
                run(&mut *queue, &mut reads, targets, batch, seconds)?
            }
            Way::Tier { verified } => {
                let held = (0..terms.depth).map(|_| None).collect();
                let mut reads = TierReads { tier: &self.tier, draws, held, verified };
                // Made last, and so gone before the extents that it reads from are let go.
                let mut queue = self.media.queue(terms.depth)?;
                queue.register(pool.region())?;
                run(&mut *queue, &mut reads, targets, batch, seconds)?
            }
        };
        Ok(loaded.reads_per_second)
    }
}

struct RawReads<D> {
    draws: D,
}

impl<'a, D: Iterator<Item = &'a Draw>> Stream for RawReads<D> {
    fn first(&mut self, _: usize, into: Target) -> Result<(Token, Command)> {
        let draw = self.draws.next().ok_or_else(missing)?;
        Ok((Token(0), Command::Read { at: draw.at, into }))
    }

    fn after(&mut self, completion: Completion) -> Result<(Token, Command)> {
        completion.result?;
        self.first(0, memory(completion.command)?)
    }
}

struct TierReads<'t, D> {
    tier: &'t Tier,
    draws: D,
    /// For each read in flight its extent, and which block of it.
    held: Vec<Option<(Extent, usize)>>,
    verified: bool,
}

impl<'a, D: Iterator<Item = &'a Draw>> Stream for TierReads<'_, D> {
    fn first(&mut self, number: usize, into: Target) -> Result<(Token, Command)> {
        let draw = self.draws.next().ok_or_else(missing)?;
        let file = self.tier.file(draw.file).ok_or_else(missing)?;
        let extent = file.newest().extent(draw.extent).ok_or_else(missing)?;
        let mut at = extent.at();
        at.offset += u64::from(draw.block) * u64::from(BLOCK_BYTES);
        self.held[number] = Some((extent, draw.block as usize));
        Ok((Token(number as u64), Command::Read { at, into }))
    }

    fn after(&mut self, completion: Completion) -> Result<(Token, Command)> {
        completion.result?;
        let number = usize::try_from(completion.token.0).unwrap_or(usize::MAX);
        let held = self.held.get_mut(number).and_then(Option::take);
        let (extent, block) = held.ok_or_else(|| Kind::Io.error("a read that nobody made"))?;
        let into = memory(completion.command)?;
        if self.verified {
            let expected = extent
                .checksums_of(block..block + 1)
                .ok_or_else(|| Kind::NotResident.error("checksums are not in memory"))?;
            if into.first_mismatch(BLOCK_BYTES as usize, expected).is_some() {
                return Err(Kind::Corrupt.error(format!("block {block} of {extent:?} is another")));
            }
        }
        drop(extent);
        self.first(number, into)
    }
}

fn memory(command: Command) -> Result<Target> {
    match command {
        Command::Read { into, .. } => Ok(into),
        _ => Err(Kind::Io.error("a read came back as another command")),
    }
}

#[cfg(test)]
mod tests {
    use nvme_tier::device::{DeviceIndex, Driver, Location};

    use super::*;

    fn terms(way: Way) -> Terms {
        Terms { way, depth: 8, batch: 4, seconds: 1, core: 0 }
    }

    /// A tier on a file, unless this kernel has no io_uring, or forbids it.
    fn filled(folder: &std::path::Path) -> Option<Filled> {
        let path = folder.join("tier");
        nvme_tier::device::allocate_file(&path, 512 << 20, Driver::Auto, &mut |_, _| {})
            .expect("room");
        match Filled::make(&path, Driver::IoUring) {
            Ok(filled) => Some(filled),
            Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::Denied) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn only_verified_reads_notice_another_block() {
        let folder = tempfile::tempdir().expect("a directory");
        let Some(filled) = filled(folder.path()) else { return };
        assert!(filled.read(terms(Way::Tier { verified: true })).expect("as written") > 0.0);
        // Some of the blocks that are read first are overwritten behind the tier's back.
        let pool = Pool::new(&[SizeClass { bytes: 4096, count: 1 }], HugePages::Never);
        let pool = pool.expect("memory");
        let mut queue = filled.media.queue(1).expect("a queue");
        for draw in &filled.draws[..64] {
            let from = dma::Source::Buffer(pool.take(4096).expect("free"), 0..4096);
            let at = Location { device: DeviceIndex(0), offset: draw.at.offset };
            queue.submit(Token(0), Command::Write { at, from }).expect("room");
            let mut completions = Vec::new();
            while completions.is_empty() {
                queue.gather(1).expect("sound");
                queue.poll(&mut completions);
            }
            completions.remove(0).result.expect("written");
        }
        assert!(filled.read(terms(Way::Tier { verified: false })).expect("not looked at") > 0.0);
        let error = filled.read(terms(Way::Tier { verified: true })).expect_err("looked at");
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}
