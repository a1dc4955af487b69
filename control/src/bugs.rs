//! Mistakes that this crate does not make, for tests to make on purpose: as in `nvme_tier`'s module
//! of the same name, and under the same feature.
#![cfg_attr(
    not(feature = "seeded-bugs"),
    allow(unreachable_pub, reason = "only with the feature is this module public")
)]

extent::mistakes! {
    /// A proof that was shown is as good as before.
    ProofUsedTwice,
    /// A proof is good for ever.
    ProofOutlivesItsTime,
    /// Whoever shows a proof belongs to the default tenant.
    TenantForgotten,
    /// However many proofs are outstanding, there is one more.
    GrantsUnbounded,
}
