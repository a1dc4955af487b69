//! The functions that C calls.

pub mod files;
pub mod reads;
pub mod rings;
pub mod words;
pub mod writes;
