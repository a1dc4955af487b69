use std::fmt;

use super::CuFileInfo;
use crate::bugs::{self, Bug};

/// How cuFile brought bytes to the device, as far as that can be known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transfer {
    /// From the storage to the GPU: the library may not do otherwise, and nvidia-fs counted reads meanwhile.
    Direct,
    /// In compatibility mode: through host memory, with the processor. The library has nothing to go direct
    /// with, or nvidia-fs counted no read meanwhile.
    Compatible,
    /// One or the other: the library does not say.
    Unknown,
}

impl Transfer {
    /// A stable, lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Compatible => "compatible",
            Self::Unknown => "unknown",
        }
    }

    /// What can be said of so many calls, with nvidia-fs' count of reads before and after. The count is the
    /// machine's: that it rose proves nothing while the library may do otherwise.
    pub(super) fn judge(
        info: &CuFileInfo,
        calls: u64,
        before: Option<u64>,
        after: Option<u64>,
    ) -> Self {
        if info.nvidia_fs.is_none() && !info.has_p2p {
            return if info.allows_compatible { Self::Compatible } else { Self::Unknown };
        }
        if bugs::is(Bug::CompatiblePassesForDirect) {
            return Self::Direct;
        }
        let (Some(before), Some(after)) = (before, after) else { return Self::Unknown };
        if before == after && calls > 0 && info.all_is_counted {
            return Self::Compatible;
        }
        let rose = after.checked_sub(before).is_some_and(|by| by >= calls && by > 0);
        if rose && !info.allows_compatible { Self::Direct } else { Self::Unknown }
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(nvidia_fs: bool, has_p2p: bool, allows_compatible: bool) -> CuFileInfo {
        CuFileInfo {
            version: None,
            nvidia_fs: nvidia_fs.then_some((2, 25)),
            has_p2p,
            all_is_counted: nvidia_fs && !has_p2p,
            allows_compatible,
            most_bytes: 1 << 24,
        }
    }

    #[test]
    fn nothing_is_claimed_that_is_not_known() {
        use Transfer::{Compatible, Direct, Unknown};
        let none = (None, None);
        let (same, more) = ((Some(7), Some(7)), (Some(7), Some(9)));
        let (fewer, reset) = ((Some(7), Some(8)), (Some(7), Some(1)));
        for (nvidia_fs, p2p, compatible, (before, after), expected) in [
            // Nothing to go direct with.
            (false, false, true, none, Compatible),
            (false, false, false, none, Unknown),
            // Both ways are open: only a count that did not move tells.
            (true, false, true, none, Unknown),
            (true, false, true, same, Compatible),
            (true, false, true, more, Unknown),
            (true, false, false, none, Unknown),
            (true, false, false, same, Compatible),
            (true, false, false, more, Direct),
            (true, false, false, fewer, Unknown),
            (true, false, false, reset, Unknown),
            (true, false, false, (None, Some(9)), Unknown),
            // What the kernel moves by itself nvidia-fs does not count.
            (false, true, true, none, Unknown),
            (true, true, true, same, Unknown),
            (true, true, false, same, Unknown),
        ] {
            let info = info(nvidia_fs, p2p, compatible);
            let judged = Transfer::judge(&info, 2, before, after);
            assert_eq!(judged, expected, "{info:?} {before:?} {after:?}");
        }
    }
}
