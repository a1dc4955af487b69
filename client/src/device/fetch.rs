use std::sync::Arc;

use crate::File;
use crate::file::Handle;
use gds::DeviceSpan;

/// A read into device memory, to be done with others.
pub struct DeviceFetch {
    pub(super) handle: Arc<Handle>,
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) into: DeviceSpan,
}

impl DeviceFetch {
    /// A read from `offset` of a file, of as much as there is room for.
    #[must_use]
    pub fn new(file: &File, offset: u64, into: &DeviceSpan) -> Self {
        Self {
            handle: Arc::clone(file.handle()),
            name: file.name().to_string(),
            offset,
            into: into.clone(),
        }
    }
}
