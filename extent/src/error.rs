use std::error::Error as StdError;
use std::fmt;

/// The result of anything in Forebay that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the small vocabulary shared by every crate, the wire and the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// No such file, generation, silo, job or handle.
    NotFound = 1,
    /// The extent is not on this node, and may not or could not be fetched.
    NotResident = 2,
    /// The source changed, or the generation asked for is gone.
    Stale = 3,
    /// A higher epoch has taken over.
    Fenced = 4,
    /// Out of credits, queue slots or buffers: try again after a while.
    Busy = 5,
    /// No room that may be taken: everything left is pinned, dirty or in use.
    NoSpace = 6,
    /// A checksum or a record does not hold.
    Corrupt = 7,
    /// A device, a file system or a silo failed the operation.
    Io = 8,
    /// The peer went away.
    Disconnected = 9,
    /// Not allowed.
    Denied = 10,
    /// The request makes no sense as it stands.
    Invalid = 11,
    /// This node, silo or format cannot do that.
    Unsupported = 12,
}

impl Kind {
    /// Every kind, in the order of its wire status.
    pub const ALL: [Self; 12] = [
        Self::NotFound,
        Self::NotResident,
        Self::Stale,
        Self::Fenced,
        Self::Busy,
        Self::NoSpace,
        Self::Corrupt,
        Self::Io,
        Self::Disconnected,
        Self::Denied,
        Self::Invalid,
        Self::Unsupported,
    ];

    /// The status byte of a reply capsule. Zero is success and belongs to no kind.
    #[must_use]
    pub const fn status(self) -> u8 {
        self as u8
    }

    /// The kind of a reply's status byte; `None` for success and for a value this version does
    /// not know.
    #[must_use]
    pub fn from_status(status: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.status() == status)
    }

    /// A stable, lower-case name, as printed in logs and `--json` output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NotResident => "not_resident",
            Self::Stale => "stale",
            Self::Fenced => "fenced",
            Self::Busy => "busy",
            Self::NoSpace => "no_space",
            Self::Corrupt => "corrupt",
            Self::Io => "io",
            Self::Disconnected => "disconnected",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
        }
    }

    /// Whether the same request may succeed later without anyone changing anything.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Busy | Self::Io | Self::Disconnected)
    }

    /// An error of this kind.
    pub fn error(self, context: impl Into<String>) -> Error {
        Error::new(self, context)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error: its kind, a sentence that says what to do next, and what caused it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), source: None }))
    }

    /// The same error with the one that caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// An [`Kind::Io`] error for a failed system call or stream.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(Kind::Io, context).caused_by(source)
    }

    /// What went wrong, in one word.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The sentence for the operator, without the cause.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.0.context
    }

    /// Puts what was being done in front of the sentence, and keeps kind and cause.
    #[must_use]
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.0.context = format!("{doing}: {}", self.0.context);
        self
    }

    /// A copy to hand to a second waiter. The cause becomes part of the sentence.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self::new(self.kind(), self.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.kind())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|error| error as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_status() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_status(kind.status()), Some(kind));
        }
        assert_eq!(Kind::from_status(0), None);
        assert_eq!(Kind::from_status(200), None);
    }

    #[test]
    fn display_tells_the_whole_chain() {
        let cause = std::io::Error::other("the cable fell out");
        let error = Error::io("reading slab 3", cause).while_doing("recovery");
        assert_eq!(error.to_string(), "recovery: reading slab 3: the cable fell out");
        assert_eq!(error.kind(), Kind::Io);
    }
}
