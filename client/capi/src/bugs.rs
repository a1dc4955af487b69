//! Mistakes that this crate does not make, for tests to make on purpose: as in `nvme_tier`'s module
//! of the same name, and under the same feature.

extent::mistakes! {
    /// A completion that was seen is handed out once more.
    HandedOutTwice,
    /// A completion carries the `user_data` of another read that is under way.
    UserDataMixed,
    /// A ring that is full takes more.
    FullRingTakes,
    /// The end of a file in the middle of a copied read counts as if all had been read.
    ShortReadForgotten,
    /// A closed file's number is that of the next one.
    NumbersReused,
    /// Memory is freed under a read.
    FreedUnderRead,
    /// A rule is broken in the middle of a call.
    Panics,
}
