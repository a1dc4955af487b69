use crate::device::nvme::ControllerStatus;

/// What a controller is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    Ready,
    Stopped,
    ShutDown,
}

impl Goal {
    /// Whether the controller is there.
    pub(super) fn is_reached(self, status: ControllerStatus) -> bool {
        match self {
            Self::Ready => status.is_ready(),
            Self::Stopped => !status.is_ready(),
            Self::ShutDown => status.is_shut_down(),
        }
    }

    /// What it should do, in words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Ready => "become ready",
            Self::Stopped => "stop",
            Self::ShutDown => "shut down",
        }
    }
}
