//! Mistakes that this crate does not make, for tests to make on purpose: see [`extent::mistakes`].
#![cfg_attr(
    not(feature = "seeded-bugs"),
    allow(unreachable_pub, reason = "only with the feature is this module public")
)]

extent::mistakes! {
    /// With one work request all that are with the device pass for ended, and their memory is used again.
    AllEndWithOne,
    /// A reply is sent before the RDMA WRITEs of its request.
    ReplyOvertakes,
    /// A work request that failed passes for one that succeeded.
    FailureIgnored,
    /// A receive that failed is not posted again.
    ReceiveForgotten,
    /// What the work requests of a session that ended took of the completion queue is not given back.
    RoomLost,
    /// A queue pair goes at once, and its last completions are taken when its number may be another's.
    LastCompletionsLeft,
    /// A queue pair goes at once, whatever of it is still to come.
    BuriedAtOnce,
    /// Memory of a device that is taken back stays registered.
    DeviceKept,
    /// A part of a device's memory is named by what is registered, wherever it ends.
    DeviceUnbounded,
}
