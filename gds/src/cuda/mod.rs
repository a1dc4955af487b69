//! NVIDIA's GPUs, through the driver's own interface (`libcuda.so.1`).
#![allow(unsafe_code)]

mod context;
mod driver;
mod ffi;

pub use driver::{CudaDriver, CudaState};
