//! Commands for a file in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use extent::Result;

use super::MemoryFile;
use crate::device::{Command, Completion, Token, admit};

/// After so many bytes a poll ends: what they were for goes on before more is copied.
const POLL_BYTES: usize = 256 << 10;

/// One shard's queue for a file in memory. What is submitted waits for the next poll, which does it.
#[derive(Debug)]
pub(in crate::device) struct MemoryQueue {
    file: Arc<MemoryFile>,
    waiting: VecDeque<(Token, Command)>,
    depth: usize,
}

impl MemoryQueue {
    /// A queue for at most `depth` commands.
    ///
    /// # Errors
    /// [`extent::Kind::Invalid`] for a depth that no queue has.
    pub(in crate::device) fn new(file: &Arc<MemoryFile>, depth: usize) -> Result<Self> {
        admit::check_depth(depth)?;
        Ok(Self { file: Arc::clone(file), waiting: VecDeque::with_capacity(depth), depth })
    }

    /// Takes a command, or gives it back if there is no room.
    pub(in crate::device) fn submit(
        &mut self,
        token: Token,
        command: Command,
    ) -> Result<(), Command> {
        if self.waiting.len() == self.depth {
            return Err(command);
        }
        self.waiting.push_back((token, command));
        Ok(())
    }

    /// Does what waits, one command at least.
    pub(in crate::device) fn poll(&mut self, completions: &mut Vec<Completion>) {
        let mut bytes = 0;
        while bytes < POLL_BYTES {
            let Some((token, mut command)) = self.waiting.pop_front() else { return };
            let result = self.file.execute(&mut command);
            bytes += command.length();
            completions.push(Completion { token, command, result });
        }
    }

    pub(in crate::device) fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}
