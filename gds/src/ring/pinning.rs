use dma::ALIGN_BYTES;
use extent::{Kind, Result};

use super::{HostMemory, Ring, place};
use crate::bugs::{self, Bug};

/// Whether host memory is pinned with the device, which then reads it by itself. From other memory the
/// driver copies with the processor first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pinning {
    /// It is, or it is not used.
    Require,
    /// It is where the device takes it.
    Try,
    /// It is not.
    Never,
}

impl<M: HostMemory> Ring<M> {
    /// Sees to it that a place's memory is pinned, if it is to be.
    pub(super) fn pin(&mut self, index: usize, memory: &M) -> Result<()> {
        let span = memory.span().ok_or_else(|| Kind::Invalid.error("the memory is gone"))?;
        let is_whole = |bytes: usize| bytes.is_multiple_of(ALIGN_BYTES);
        if !is_whole(span.offset) || !is_whole(span.length) || span.length < self.stats.slot_bytes {
            return Err(Kind::Invalid.error("a piece of a ring is made of whole pages"));
        }
        if self.pinning == Pinning::Never
            || self.places[index].pin.as_ref().is_some_and(|pin| pin.covers(span))
        {
            return Ok(());
        }
        // First, so that never more is pinned than the ring has.
        self.unpin(index);
        if bugs::is(Bug::ReplacedUnpinned) && self.stats.copies != 0 {
            return Ok(());
        }
        match place::pin(&self.device, span) {
            Ok(pin) => {
                self.stats.pinned_bytes += pin.bytes();
                self.stats.peak_pinned_bytes =
                    self.stats.peak_pinned_bytes.max(self.stats.pinned_bytes);
                self.places[index].pin = Some(pin);
                Ok(())
            }
            Err(error) if self.pinning == Pinning::Require => Err(error),
            Err(error) => {
                tracing::debug!(%error, "host memory that the device does not take");
                Ok(())
            }
        }
    }

    pub(super) fn unpin(&mut self, index: usize) {
        if let Some(pin) = self.places[index].pin.take() {
            self.stats.pinned_bytes -= pin.bytes();
        }
    }
}
