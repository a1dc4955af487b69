//! Commands for a file in memory, each done as it is submitted.

use std::sync::Arc;

use extent::Result;

use super::MemoryFile;
use crate::device::{Command, Completion, Token, admit};

/// One shard's queue for a file in memory.
#[derive(Debug)]
pub(in crate::device) struct MemoryQueue {
    file: Arc<MemoryFile>,
    done: Vec<Completion>,
    depth: usize,
}

impl MemoryQueue {
    /// A queue that holds at most `depth` commands until they are polled.
    ///
    /// # Errors
    /// [`extent::Kind::Invalid`] for a depth that no queue has.
    pub(in crate::device) fn new(file: &Arc<MemoryFile>, depth: usize) -> Result<Self> {
        admit::check_depth(depth)?;
        Ok(Self { file: Arc::clone(file), done: Vec::with_capacity(depth), depth })
    }

    /// Does what a command says, or gives it back if as many wait to be polled as may.
    pub(in crate::device) fn submit(
        &mut self,
        token: Token,
        mut command: Command,
    ) -> Result<(), Command> {
        if self.done.len() == self.depth {
            return Err(command);
        }
        let result = self.file.execute(&mut command);
        self.done.push(Completion { token, command, result });
        Ok(())
    }

    pub(in crate::device) fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.done);
    }

    pub(in crate::device) fn in_flight(&self) -> usize {
        self.done.len()
    }
}
