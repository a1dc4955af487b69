//! Silos: the slower places that files come from and go back to.

mod seam;

pub use seam::{
    Capabilities, Condition, ObjectMeta, Page, Silo, Upload, UploadTags,
};
