//! Controller properties (Base 3.1.3), as they lie in the first BAR of a PCIe function.

use std::time::Duration;

/// Byte offsets of the properties.
pub(in crate::device) mod offset {
    /// CAP, Controller Capabilities.
    pub(in crate::device) const CAP: usize = 0x00;
    /// CC, Controller Configuration.
    pub(in crate::device) const CC: usize = 0x14;
    /// CSTS, Controller Status.
    pub(in crate::device) const CSTS: usize = 0x1c;
    /// AQA, Admin Queue Attributes.
    pub(in crate::device) const AQA: usize = 0x24;
    /// ASQ, Admin Submission Queue Base Address.
    pub(in crate::device) const ASQ: usize = 0x28;
    /// ACQ, Admin Completion Queue Base Address.
    pub(in crate::device) const ACQ: usize = 0x30;
    /// The first doorbell (PCIe 3.1.2): a submission queue's tail, then a completion queue's head,
    /// for each queue in turn.
    pub(in crate::device) const DOORBELLS: usize = 0x1000;
}

/// CAP, Controller Capabilities (Base 3.1.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct Capabilities(pub(in crate::device) u64);

impl Capabilities {
    /// MQES: the most entries of an I/O queue.
    pub(in crate::device) fn most_queue_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// TO: the longest that enabling and disabling take.
    pub(in crate::device) fn timeout(self) -> Duration {
        // A controller that says zero means "less than half a second".
        Duration::from_millis(500) * (self.0 >> 24 & 0xff).max(1) as u32
    }

    /// DSTRD: bytes from one doorbell to the next.
    pub(in crate::device) fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }

    /// CSS: whether there is the NVM command set, directly or among others.
    pub(in crate::device) fn has_nvm_command_set(self) -> bool {
        self.0 >> 37 & 0b100_0001 != 0
    }

    /// CSS: whether a command set is chosen for each namespace.
    pub(in crate::device) fn has_only_several_command_sets(self) -> bool {
        self.0 >> 37 & 0b100_0001 == 0b100_0000
    }

    /// MPSMIN: the smallest page that the controller works with.
    pub(in crate::device) fn least_page_bytes(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }
}

/// CC, Controller Configuration (Base 3.1.3.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct Configuration(pub(in crate::device) u32);

impl Configuration {
    const ENABLE: u32 = 1;
    const SHUTDOWN: u32 = 0b11 << 14;

    /// Enabled, with pages of 4 KiB (MPS 0), submission entries of 64 bytes (IOSQES 6) and
    /// completion entries of 16 (IOCQES 4).
    pub(in crate::device) fn enabled(capabilities: Capabilities) -> Self {
        let command_sets = if capabilities.has_only_several_command_sets() { 0b110 } else { 0 };
        Self(Self::ENABLE | command_sets << 4 | 6 << 16 | 4 << 20)
    }

    /// The same with EN cleared: a controller reset.
    pub(in crate::device) fn disabled(self) -> Self {
        Self(self.0 & !(Self::ENABLE | Self::SHUTDOWN))
    }

    /// The same with SHN set to a normal shutdown.
    pub(in crate::device) fn shutting_down(self) -> Self {
        Self(self.0 & !Self::SHUTDOWN | 0b01 << 14)
    }

    /// EN.
    pub(in crate::device) fn is_enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }
}

/// CSTS, Controller Status (Base 3.1.3.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct ControllerStatus(pub(in crate::device) u32);

impl ControllerStatus {
    /// What reads of a function that is no longer there return.
    pub(in crate::device) fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// RDY.
    pub(in crate::device) fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// CFS: the controller cannot go on without a reset.
    pub(in crate::device) fn is_fatal(self) -> bool {
        self.0 & 0b10 != 0
    }

    /// SHST: a shutdown is complete.
    pub(in crate::device) fn is_shut_down(self) -> bool {
        self.0 >> 2 & 0b11 == 0b10
    }
}

/// AQA, Admin Queue Attributes (Base 3.1.3.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct AdminQueueAttributes(pub(in crate::device) u32);

impl AdminQueueAttributes {
    /// Both queues with so many entries.
    pub(in crate::device) fn of(entries: u16) -> Self {
        let zero_based = u32::from(entries) - 1;
        Self(zero_based << 16 | zero_based)
    }
}
