//! What the process's exit status says.

use extent::Kind;

/// The exit status for an error of this kind. Kept stable: scripts branch on it.
pub(crate) const fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Io | Kind::Unsupported => 1,
        Kind::Invalid => 2,
        Kind::NotFound | Kind::NotResident => 3,
        Kind::Stale => 4,
        Kind::Fenced => 5,
        Kind::Busy => 6,
        Kind::NoSpace => 7,
        Kind::Corrupt => 8,
        Kind::Disconnected => 9,
        Kind::Denied => 10,
    }
}

/// The table above, for `--help`.
pub(crate) const HELP: &str = "\
Exit status:
   0  done
   1  failed (a device, a silo or the system; or not supported here)
   2  usage: the command line, the configuration or the request makes no sense
   3  not found, or not on this node
   4  stale: the source changed meanwhile (a conflict)
   5  cancelled, or fenced by a newer controller
   6  busy: try again later
   7  no space that may be taken
   8  corrupt: a checksum or a record does not hold, or bytes differ
   9  no connection: the node is not running or went away
  10  denied
 130  interrupted: what the node was asked for goes on";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented() {
        for kind in Kind::ALL {
            let line = format!("{:>4}  ", code(kind));
            assert!(HELP.lines().any(|text| text.starts_with(&line)), "{kind} has no line");
        }
    }
}
