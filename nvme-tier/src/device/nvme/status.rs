use std::fmt;

use extent::{Error, Kind};

/// How a command ended: the Status field of a completion entry (Base 3.3.3.2.1), without its phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct Status(u16);

/// Status Code Type: whose codes.
const GENERIC: u8 = 0;
const COMMAND_SPECIFIC: u8 = 1;
const MEDIA: u8 = 2;

impl Status {
    /// From the last word of a completion entry, or what io_uring gives as a passthrough command's
    /// positive result, shifted by the phase.
    pub(in crate::device) fn from_entry(word: u16) -> Self {
        Self(word >> 1)
    }

    /// From a Status field alone, as the kernel returns it for a passthrough command.
    pub(in crate::device) fn from_field(field: u16) -> Self {
        Self(field & 0x7fff)
    }

    /// Successful Completion.
    pub(in crate::device) fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// SC, Status Code.
    pub(in crate::device) fn code(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// SCT, Status Code Type.
    pub(in crate::device) fn code_type(self) -> u8 {
        (self.0 >> 8 & 0b111) as u8
    }

    /// CRD, Command Retry Delay (Base figure 93): which of the delays of Identify Controller to wait
    /// before the command is sent again; 0 for none.
    pub(in crate::device) fn retry_delay(self) -> u8 {
        (self.0 >> 11 & 0b11) as u8
    }

    /// DNR, Do Not Retry: the same command would fail again.
    pub(in crate::device) fn says_do_not_retry(self) -> bool {
        self.0 >> 14 & 1 != 0
    }

    /// Whether the same command may well succeed if it is sent again.
    pub(in crate::device) fn is_worth_a_retry(self) -> bool {
        let transient = matches!(
            (self.code_type(), self.code()),
            // Data Transfer Error, Internal Error, aborted for one of several reasons, Command
            // Interrupted, Transient Transport Error, Namespace Not Ready.
            (GENERIC, 0x04 | 0x06..=0x0a | 0x21 | 0x22 | 0x82)
        );
        // One that says when to come again means it.
        (transient || self.retry_delay() != 0) && !self.says_do_not_retry()
    }

    /// What the specification calls it (Base figures 99 to 101, NVM figure 17), if it is one that
    /// commands of this driver end with.
    fn name(self) -> Option<&'static str> {
        Some(match (self.code_type(), self.code()) {
            (GENERIC, 0x00) => "Successful Completion",
            (GENERIC, 0x01) => "Invalid Command Opcode",
            (GENERIC, 0x02) => "Invalid Field in Command",
            (GENERIC, 0x03) => "Command ID Conflict",
            (GENERIC, 0x04) => "Data Transfer Error",
            (GENERIC, 0x05) => "Commands Aborted due to Power Loss Notification",
            (GENERIC, 0x06) => "Internal Error",
            (GENERIC, 0x07) => "Command Abort Requested",
            (GENERIC, 0x08) => "Command Aborted due to SQ Deletion",
            (GENERIC, 0x0b) => "Invalid Namespace or Format",
            (GENERIC, 0x13) => "PRP Offset Invalid",
            (GENERIC, 0x20) => "Namespace is Write Protected",
            (GENERIC, 0x21) => "Command Interrupted",
            (GENERIC, 0x22) => "Transient Transport Error",
            (GENERIC, 0x80) => "LBA Out of Range",
            (GENERIC, 0x81) => "Capacity Exceeded",
            (GENERIC, 0x82) => "Namespace Not Ready",
            (COMMAND_SPECIFIC, 0x00) => "Completion Queue Invalid",
            (COMMAND_SPECIFIC, 0x01) => "Invalid Queue Identifier",
            (COMMAND_SPECIFIC, 0x02) => "Invalid Queue Size",
            (COMMAND_SPECIFIC, 0x03) => "Abort Command Limit Exceeded",
            (COMMAND_SPECIFIC, 0x81) => "Invalid Protection Information",
            (COMMAND_SPECIFIC, 0x82) => "Attempted Write to Read Only Range",
            (MEDIA, 0x80) => "Write Fault",
            (MEDIA, 0x81) => "Unrecovered Read Error",
            (MEDIA, 0x82) => "End-to-end Guard Check Error",
            (MEDIA, 0x83) => "End-to-end Application Tag Check Error",
            (MEDIA, 0x84) => "End-to-end Reference Tag Check Error",
            (MEDIA, 0x85) => "Compare Failure",
            (MEDIA, 0x86) => "Access Denied",
            (MEDIA, 0x87) => "Deallocated or Unwritten Logical Block",
            _ => return None,
        })
    }

    /// What it means to whoever sent the command.
    fn kind(self) -> Kind {
        match (self.code_type(), self.code()) {
            (GENERIC, 0x01) => Kind::Unsupported,
            (GENERIC, 0x02 | 0x0b | 0x13 | 0x80) => Kind::Invalid,
            (GENERIC, 0x20) | (COMMAND_SPECIFIC, 0x82) | (MEDIA, 0x86) => Kind::Denied,
            (GENERIC, 0x81) => Kind::NoSpace,
            (MEDIA, 0x82..=0x84) => Kind::Corrupt,
            _ => Kind::Io,
        }
    }

    /// A failure of what `doing` names.
    pub(in crate::device) fn error(self, doing: impl fmt::Display) -> Error {
        self.kind().error(format!("{doing}: the device answered {self}"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code_type, code) = (self.code_type(), self.code());
        match self.name() {
            Some(name) => write!(f, "\"{name}\" (status {code_type:x}h/{code:02x}h")?,
            None => write!(f, "with status {code_type:x}h/{code:02x}h (")?,
        }
        let separator = if self.name().is_some() { ", " } else { "" };
        if self.says_do_not_retry() {
            write!(f, "{separator}do not retry")?;
        } else {
            write!(f, "{separator}may be retried")?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_itself_and_whether_to_retry() {
        let word = (0x4000 | 2 << 8 | 0x81) << 1 | 1;
        let status = Status::from_entry(word);
        assert!(!status.is_success() && status.says_do_not_retry());
        let error = status.error("reading 4096 bytes");
        assert_eq!(error.kind(), Kind::Io);
        let text = error.to_string();
        assert!(text.contains("Unrecovered Read Error") && text.contains("do not retry"), "{text}");
        assert!(Status::from_entry(1).is_success());
        assert!(Status::from_field(0x06).is_worth_a_retry());
        assert!(!Status::from_field(0x4006).is_worth_a_retry());
        let later = Status::from_field(0b10 << 11 | 0x281);
        assert!(later.is_worth_a_retry() && later.retry_delay() == 2);
        assert!(!Status::from_field(0x4000 | 0b10 << 11 | 0x281).is_worth_a_retry());
        assert_eq!(Status::from_field(0x284).error("x").kind(), Kind::Corrupt);
        let unknown = Status::from_field(7 << 8 | 0xff).error("x").to_string();
        assert!(unknown.contains("7h/ffh"), "{unknown}");
    }
}
