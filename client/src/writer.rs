use std::ops::RangeBounds;

use extent::{FileName, Result};

use crate::file::Handle;
use crate::{Client, File, Memory, bounce};

/// A new generation of a file, which nobody sees before [`Writer::commit`]. Dropped without that,
/// it is gone.
pub struct Writer {
    /// `None` once committed: the file has it then.
    handle: Option<Handle>,
    name: FileName,
}

impl Writer {
    pub(crate) fn new(client: &Client, name: FileName, number: u64) -> Self {
        Self { handle: Some(Handle { client: client.clone(), number }), name }
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &FileName {
        &self.name
    }

    /// Writes any memory to `offset`, by way of memory that the node can reach.
    ///
    /// # Errors
    /// [`extent::Kind::NoSpace`] if the node is full; [`extent::Kind::Disconnected`] if the session is lost; what the
    /// node answers.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        bounce::write(self.handle(), offset, bytes)
            .map_err(|error| error.while_doing(format_args!("writing {} at {offset}", self.name)))
    }

    /// Writes a range of the memory to `offset`, without a copy of the client's.
    ///
    /// # Errors
    /// As [`Writer::write_at`]. The memory is empty if the session was lost over shared memory.
    pub fn write_memory_at(
        &self,
        offset: u64,
        memory: &mut Memory,
        within: impl RangeBounds<usize>,
    ) -> Result<()> {
        let within = memory.resolve(&within)?;
        let handle = self.handle();
        let lent = std::mem::take(memory);
        let outcome = handle.client.run(lent, |session, memory| {
            session.submit_write(handle.number, offset, memory, within.clone())
        });
        match outcome {
            Ok(mut completed) => {
                *memory = completed.memory.take().unwrap_or_default();
                completed.result.map_err(|error| {
                    error.while_doing(format_args!("writing {} at {offset}", self.name))
                })
            }
            Err(refused) => {
                *memory = refused.memory;
                Err(refused.error)
            }
        }
    }

    /// Makes the new generation durable and visible, whole, at this length in bytes. Bytes never
    /// written are zero.
    ///
    /// # Errors
    /// What the node answers. Whether the generation is there after [`extent::Kind::Disconnected`] is not known:
    /// open the file and look at its generation.
    pub fn commit(mut self, length: u64) -> Result<File> {
        let handle = self.handle();
        let (client, number) = (handle.client.clone(), handle.number);
        let completed = client.call(|session| session.submit_commit(number, length))?;
        let opened = completed.opened();
        let (_, body) =
            opened.map_err(|error| error.while_doing(format_args!("committing {}", self.name)))?;
        let handle = self.handle.take().expect("a writer commits once");
        Ok(File::with_handle(handle, self.name, body))
    }

    fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("only commit takes it, with the writer")
    }
}
