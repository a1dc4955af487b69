//! Silos: the slower places that files come from and go back to.
//!
//! [`open`] makes a [`Silo`] of a section of the configuration: a [`Directory`] or mounted file
//! system, or [`Objects`] in S3, Google Cloud Storage, Azure or behind an HTTP server. [`sim`] has
//! one in memory for tests.

mod blocking;
mod clock;
mod config;
mod directory;
mod limits;
mod object;
mod seam;
mod settle;
pub mod sim;

pub use config::{Mount, Place, SiloConfig, open};
pub use directory::Directory;
pub use limits::{Counters, Counts, LimitOptions, Limits};
pub use object::{Azure, Gcs, Objects, S3};
pub use seam::{Capabilities, Condition, IsOurs, ObjectMeta, Page, Silo, Upload, UploadTags};
