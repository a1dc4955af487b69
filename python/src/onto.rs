//! Memory of a GPU that a read goes to, and what of it the node writes by itself.

use std::ops::Range;
use std::time::Instant;

use client::device::{Aim, DeviceSpan, Mark, Stream, within};
use extent::{Kind, Result};

use crate::chunk::Chunk;
use crate::clock;
use crate::staged::Staged;

/// Memory of a GPU, from its first byte on. Whoever made this keeps it allocated until the transfer is over
/// and nothing writes there on its behalf.
pub(crate) struct Onto {
    pub(crate) ordinal: usize,
    pub(crate) into: DeviceSpan,
    /// What is written comes after what is in this stream.
    pub(crate) after: Stream,
    /// A stream in which what comes after the read waits for its copies: then the caller does not.
    pub(crate) before: Option<Stream>,
    /// What of it the node may write by itself.
    pub(crate) aim: Option<Aim>,
}

/// How far that is.
#[derive(Default)]
pub(crate) struct Direct {
    /// What has to be done before, and when that was found out. The node's writes are in no stream.
    mark: Option<(Mark, Instant)>,
    /// Requests under way.
    pub(crate) in_flight: usize,
    /// Whether any byte has come.
    pub(crate) has_come: bool,
}

/// What may be asked for next.
pub(crate) enum Step {
    Chunk(Chunk),
    /// Nothing, before something has ended.
    Wait,
}

impl Onto {
    /// Puts what is written in its order. The reads of a GPU follow each other here as their calls did.
    ///
    /// # Errors
    /// What went wrong with an earlier read after its end, once; what the driver answers.
    pub(crate) fn begin(&self, staged: &mut Staged, direct: &mut Direct) -> Result<()> {
        staged.begin(&self.after)?;
        if self.aim.is_some() {
            direct.mark = Some((self.after.mark()?, clock::now()));
        }
        Ok(())
    }

    /// What to ask for of what is left, from `at` on; the read begins at `offset` of its file.
    ///
    /// # Errors
    /// [`Kind::Busy`] if what was in the stream before does not end; what the driver answers.
    pub(crate) fn next(
        &self,
        at: usize,
        offset: u64,
        staged: &mut Staged,
        direct: &mut Direct,
    ) -> Result<Step> {
        let by_itself = self.aim.as_ref().map_or(0..0, |aim| aim.within.clone());
        let turns = [by_itself.start, by_itself.end, self.into.len()];
        let turn = turns.into_iter().find(|turn| *turn > at).unwrap_or(at);
        let within = within(offset + at as u64, turn - at, staged.slot_bytes);
        if !by_itself.contains(&at) {
            let Some((lent, memory)) = staged.lend() else { return Ok(Step::Wait) };
            let lent = Some(lent);
            return Ok(Step::Chunk(Chunk { start: at, within, memory, lent, ..Chunk::default() }));
        }
        if !Self::is_free(staged, direct)? || !staged.begin_direct() {
            return Ok(Step::Wait);
        }
        direct.in_flight += 1;
        let within = 0..within.len();
        Ok(Step::Chunk(Chunk { start: at, within, is_direct: true, ..Chunk::default() }))
    }

    /// Whether the GPU is done with what comes before.
    fn is_free(staged: &mut Staged, direct: &mut Direct) -> Result<bool> {
        staged.is_awaiting = false;
        let Some((mark, since)) = &direct.mark else { return Ok(true) };
        if mark.is_past()? {
            direct.mark = None;
            return Ok(true);
        }
        if clock::now() >= *since + staged.timeout {
            return Err(Kind::Busy.error(format!(
                "what was in the stream before the read is not done after {:?}: is something in it that never ends?",
                staged.timeout
            )));
        }
        staged.is_awaiting = true;
        Ok(false)
    }

    /// A part of it.
    pub(crate) fn part(&self, at: usize, length: usize) -> Result<DeviceSpan> {
        self.into.part(at..at + length)
    }

    /// What the node has written by itself, the GPU reads from now on.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn flush(&self) -> Result<()> {
        self.into.device().flush_writes()
    }

    /// Whether the node writes all of it by itself.
    pub(crate) fn covers(aim: &Aim, length: usize) -> bool {
        let Range { start, end } = aim.within;
        start == 0 && end >= length
    }
}
