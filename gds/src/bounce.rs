//! Device memory, looked at and filled by the host.
#![allow(unsafe_code)]

use std::time::Duration;

use dma::{HugePages, Region, Span, Window};
use extent::Result;

use crate::DeviceSpan;

const CHUNK_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of a span.
pub(crate) fn out(span: &DeviceSpan) -> Result<Vec<u8>> {
    let mut bytes = vec![0; span.len()];
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let stream = span.device().stream()?;
    let region = Region::anonymous(bytes.len().min(CHUNK_BYTES), HugePages::Never)?;
    for (index, chunk) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
        let from = span.pointer().after(index * CHUNK_BYTES);
        let to = Span { region: &region, offset: 0, length: chunk.len() };
        // SAFETY: nobody else knows the region; if the copy does not end, it is kept for ever below.
        let queued = unsafe { span.device().api.copy_out(from, to, stream.handle()) };
        if let Err(error) = queued.and_then(|()| stream.finish(PATIENCE)) {
            std::mem::forget(region);
            return Err(error.while_doing("reading device memory back"));
        }
        Window::new(region.clone(), 0, chunk.len())?.copy_out(chunk);
    }
    Ok(bytes)
}

/// Writes a span.
pub(crate) fn into(span: &DeviceSpan, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let stream = span.device().stream()?;
    let region = Region::anonymous(bytes.len().min(CHUNK_BYTES), HugePages::Never)?;
    for (index, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
        let to = span.pointer().after(index * CHUNK_BYTES);
        let from = Span { region: &region, offset: 0, length: chunk.len() };
        Window::new(region.clone(), 0, chunk.len())?.copy_in(chunk);
        // SAFETY: as in `out`.
        let queued = unsafe { span.device().api.copy_in(to, from, stream.handle()) };
        if let Err(error) = queued.and_then(|()| stream.finish(PATIENCE)) {
            std::mem::forget(region);
            return Err(error.while_doing("filling device memory"));
        }
    }
    Ok(())
}
