use std::time::Duration;

use extent::{Kind, Result};

use super::{HostMemory, Ring};

/// Odd, so that lengths and offsets are looked at, too.
const PROOF_BYTES: usize = 4001;
const PROOF_AT: usize = 17;

impl<M: HostMemory> Ring<M> {
    /// Copies a pattern to the device and looks whether it is there: before that, nobody should believe in it.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if other bytes are there; [`Kind::Busy`] if all pieces are in use, or the copy takes
    /// longer than `patience`; what the device answers.
    pub fn prove(&mut self, patience: Duration) -> Result<()> {
        let target = self.device.allocate(PROOF_AT + PROOF_BYTES)?;
        let (lent, mut memory) =
            self.lend().ok_or_else(|| Kind::Busy.error("all of the ring is in use"))?;
        let length = memory.as_ref().len();
        let from = PROOF_AT.min(length)..length.min(PROOF_AT + PROOF_BYTES);
        let pattern = pattern(from.len());
        memory.as_mut()[from.clone()].copy_from_slice(&pattern);
        let to = target.part(PROOF_AT..PROOF_AT + from.len())?;
        let begun = self.copy(lent, memory, from, &to)?;
        let mut ended = Vec::new();
        self.wait(patience, &mut ended);
        let copied = ended.into_iter().find(|copied| copied.id == begun.id);
        copied.map_or_else(
            || Err(Kind::Busy.error(format!("a first copy is not done after {patience:?}"))),
            |copied| copied.result,
        )?;
        if to.to_vec()? != pattern {
            return Err(Kind::Corrupt
                .error("the device does not hold what was copied to it: do not use it"));
        }
        Ok(())
    }
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()[7]
    };
    (0..length).map(|_| next()).collect()
}
