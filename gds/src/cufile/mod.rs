//! Files of this machine, read into the memory of NVIDIA's GPUs by cuFile (`libcufile.so.0`): GPUDirect
//! Storage, where the machine can do it.
//!
//! The library is opened when somebody asks for it, since that starts its threads and reads its
//! configuration. Where it cannot go direct it reads with the processor and says nothing: [`Transfer`] is what can
//! be known of that.
#![allow(unsafe_code)]

mod answer;
mod counters;
mod ffi;
mod file;
mod handle;
mod library;
mod reading;
mod registration;
mod transfer;

pub use file::{LocalFile, LocalRead};
pub use library::{CuFile, CuFileInfo};
pub use registration::Registration;
pub use transfer::Transfer;
