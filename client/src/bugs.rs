//! Mistakes that this crate does not make, for tests to make on purpose: as in `nvme_tier`'s module
//! of the same name, and under the same feature.
#![cfg_attr(
    not(feature = "seeded-bugs"),
    allow(unreachable_pub, reason = "only with the feature is this module public")
)]

extent::mistakes! {
    /// A lost connection's channel is still there when its requests' memory is given back or used
    /// again.
    ChannelKept,
    /// Memory that the devices of a lost node may still write to is used again.
    SharedMemoryReused,
    /// A read goes on in other memory than the one that its caller knows by the address.
    FixedMemoryMoved,
    /// Files are opened again at their newest generation.
    NewestReopened,
    /// A file that was forgotten and registered again passes for the one that was open.
    IdentityIgnored,
    /// The newest generation passes for the one whose COMMIT was not answered.
    NewestIsOurs,
    /// A COMMIT that was not answered passes for one that failed.
    DoubtIsFailure,
    /// A request is sent again however often that ended the connection.
    RepeatedForEver,
    /// What is lost with a connection while files are opened again passes for the node's answer.
    LossIsAnAnswer,
    /// Closing a file forgets that its COMMIT is being looked up.
    CommitForgotten,
    /// Requests behind a COMMIT that is being looked up fail.
    DoubtEndsOthers,
    /// A connection whose requests all hang is kept, because those that wait are not among them.
    HangingCreditsKept,
    /// Time in which nobody asked for anything counts as time in which the node was away.
    IdleTimeCounts,
    /// A connection may be under way for ever.
    DialsForEver,
    /// A client is given up as soon as all rails have refused it once.
    OneRefusalEnds,
    /// Everything waits until all files are open again, however long that takes.
    OneSiloHoldsAll,
    /// Each piece of a read goes to the front of the device's memory.
    PieceAtFront,
    /// A read into device memory is over when the bytes are in the ring.
    CopiesNotAwaited,
    /// What goes wrong with a read that was handed to a stream nobody is told.
    LateFailureForgotten,
    /// A piece of the ring whose read failed does not go back.
    FailedPieceKept,
    /// What waits for room in the ring when the device hangs passes for read.
    WaitingForgotten,
    /// A local file is read in a way that the policy does not allow.
    StrictLocalDegrades,
    /// A read of a local file is over when the bytes are in the ring.
    LocalCopiesNotAwaited,
    /// Device memory that nobody keeps stays registered.
    DevicesKept,
    /// Device memory that a node is to write to is not registered with the next connection.
    DevicesForgotten,
    /// What a node wrote into a device is believed without ever having been looked at.
    DirectUnproven,
    /// So is what came over a connection over which nothing was looked at yet.
    DirectUnprovenAgain,
    /// Device memory is known by its address, also when other memory is there.
    DirectByAddress,
    /// A node writes into a device while a stream still uses that memory.
    DirectOvertakes,
    /// The device is not told to take in what a node wrote.
    DirectUnflushed,
    /// A node may say that more came than was asked for.
    MoreThanAskedTaken,
    /// The checksum that a node sends with its bytes is not compared.
    PayloadUnchecked,
}
