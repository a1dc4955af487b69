//! The extension module of the Python package `forebay`.
//!
//! Built on `client::Session`: an `engine` shares one between threads, `transfer`s are what
//! Python's reads and writes become, and `slab`s the memory that both Python and the node use.
//! Nothing waits for the node, or for a lock of the engine's, with the interpreter's lock held, and
//! no thread but Python's own touches the interpreter.

mod asking;
mod bound;
mod buffer;
mod chunk;
mod client;
mod clock;
mod control;
mod dlpack;
mod engine;
mod errors;
mod file;
mod foreign;
mod future;
mod gpu;
mod gpus;
mod hardware;
mod left;
mod lock;
mod onto;
mod pool;
mod progress;
mod pump;
mod ranges;
mod registration;
mod rooms;
mod slab;
mod staged;
mod state;
mod stream;
mod target;
mod transfer;
mod wait;
mod watch;
mod writer;

use pyo3::prelude::*;

/// `forebay._forebay`: use the package `forebay`.
#[pymodule]
mod _forebay {
    #[pymodule_export]
    use crate::buffer::Buffer;
    #[pymodule_export]
    use crate::client::Client;
    #[pymodule_export]
    use crate::control::Control;
    #[pymodule_export]
    use crate::file::File;
    #[pymodule_export]
    use crate::future::{Future, Watcher};
    #[pymodule_export]
    use crate::gpu::gpu_ladder;
    #[pymodule_export]
    use crate::hardware::{rdma_devices, shm_sockets};
    #[pymodule_export]
    use crate::registration::Registration;
    #[pymodule_export]
    use crate::writer::Writer;

    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
