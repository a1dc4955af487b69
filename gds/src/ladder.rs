use std::fmt;
use std::str::FromStr;

use extent::{Error, Kind, Result};

use crate::{CuFile, DeviceInfo};

/// cuFile is opened for who asks.
const NOT_LOOKED_FOR: &str = "not looked for before a local file is read";

/// A way into the memory of a device, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Path {
    /// The node's RDMA device writes into the GPU's memory.
    GpuDirect,
    /// The node writes into a pinned ring of host memory, from which the GPU copies by itself.
    Staged,
    /// The GPU server's own file system, read by cuFile.
    CuFile,
    /// Host memory that is not pinned: the driver copies from it with the processor. Without a device, the
    /// bytes stay there.
    Host,
}

impl Path {
    /// All of them, the best first.
    pub const ALL: [Self; 4] = [Self::GpuDirect, Self::Staged, Self::CuFile, Self::Host];

    /// A stable, lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GpuDirect => "gpudirect",
            Self::Staged => "staged",
            Self::CuFile => "cufile",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Path {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|path| path.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Kind::Invalid.error(format!("there is no way {text:?}: there are {names}"))
        })
    }
}

/// Which ways are good enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// The best there is.
    #[default]
    Auto,
    /// The best there is, this one or one above it, or an error.
    AtLeast(Path),
    /// This one, or an error.
    Exactly(Path),
}

impl Policy {
    /// Whether a way is good enough.
    #[must_use]
    pub fn allows(self, path: Path) -> bool {
        match self {
            Self::Auto => true,
            Self::AtLeast(worst) => path <= worst,
            Self::Exactly(only) => path == only,
        }
    }
}

/// After a way's name: that one, or one above it.
const OR_BETTER: &str = "-or-better";

/// `auto`, `staged`, `staged-or-better`: the same that [`Policy::from_str`] reads.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::AtLeast(worst) => write!(f, "{worst}{OR_BETTER}"),
            Self::Exactly(only) => write!(f, "{only}"),
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_suffix(OR_BETTER) {
            _ if text == "auto" => Ok(Self::Auto),
            Some(worst) => Ok(Self::AtLeast(worst.parse()?)),
            None => Ok(Self::Exactly(text.parse()?)),
        }
    }
}

/// Whether a way can be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It can.
    Works,
    /// It cannot, and why not.
    Cannot(String),
}

/// How the node is reached, as far as the ways differ by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire<'a> {
    /// Over RDMA.
    Rdma,
    /// Otherwise: how, in words.
    Other(&'a str),
    /// Not known yet.
    Unknown,
}

/// The ways into device memory, and which can be taken here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ladder {
    verdicts: [Verdict; 4],
}

impl Ladder {
    /// What a device, or why there is none, and the way to the node allow. What says that it works was
    /// not tried yet.
    #[must_use]
    pub fn new(device: Result<&DeviceInfo, &str>, wire: Wire<'_>) -> Self {
        let cannot = |why: &str| Verdict::Cannot(why.to_owned());
        let (direct, staged, local) = match (device, wire) {
            (Err(why), _) => (cannot(why), cannot(why), cannot(why)),
            (Ok(device), wire) => {
                let direct = match wire {
                    _ if !device.dma_buf => cannot("the device does not export dma-buf"),
                    Wire::Other(wire) => {
                        Verdict::Cannot(format!("the node is reached over {wire}, not RDMA"))
                    }
                    Wire::Rdma => Verdict::Works,
                    // To be claimed only once what a node wrote was read back intact.
                    Wire::Unknown => cannot("only a read from a node, over RDMA, can tell"),
                };
                (direct, Verdict::Works, cannot(NOT_LOOKED_FOR))
            }
        };
        Self { verdicts: [direct, staged, local, Verdict::Works] }
    }

    /// What became of a way.
    #[must_use]
    pub fn verdict(&self, path: Path) -> &Verdict {
        &self.verdicts[path as usize]
    }

    /// All ways, the best first, and what became of them.
    pub fn rungs(&self) -> impl Iterator<Item = (Path, &Verdict)> {
        Path::ALL.into_iter().zip(&self.verdicts)
    }

    /// Looks for cuFile if there is a device: opens its library and its driver. Whether it reads a file depends on
    /// that file's file system, too.
    pub fn look_for_cufile(&mut self) {
        self.look_for_local(|| CuFile::system().map(drop));
    }

    fn look_for_local(&mut self, look: impl FnOnce() -> Result<()>) {
        if *self.verdict(Path::CuFile) == Verdict::Cannot(NOT_LOOKED_FOR.to_owned()) {
            let verdict = match look() {
                Ok(()) => Verdict::Works,
                Err(error) => Verdict::Cannot(error.to_string()),
            };
            self.verdicts[Path::CuFile as usize] = verdict;
        }
    }

    /// A way was tried, and works.
    pub fn admit(&mut self, path: Path) {
        self.verdicts[path as usize] = Verdict::Works;
    }

    /// A way was tried, in vain.
    pub fn deny(&mut self, path: Path, why: impl Into<String>) {
        self.verdicts[path as usize] = Verdict::Cannot(why.into());
    }

    /// The best way for a node's files that a policy allows: never [`Path::CuFile`].
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is none, with the reason for each that it would have allowed.
    pub fn choose(&self, policy: Policy) -> Result<Path> {
        let mut reasons = Vec::new();
        for (path, verdict) in self.rungs().filter(|(path, _)| policy.allows(*path)) {
            match verdict {
                _ if path == Path::CuFile => {
                    reasons.push(format!("{path}: this machine's own files only, not a node's"));
                }
                Verdict::Works => return Ok(path),
                Verdict::Cannot(why) => reasons.push(format!("{path}: {why}")),
            }
        }
        Err(Kind::Unsupported.error(format!(
            "no way into device memory that the policy {policy} allows ({}): mend that, or allow more",
            reasons.join("; ")
        )))
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (path, verdict)) in self.rungs().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            match verdict {
                Verdict::Works => write!(f, "{separator}{path}: works")?,
                Verdict::Cannot(why) => write!(f, "{separator}{path}: {why}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(dma_buf: bool) -> DeviceInfo {
        DeviceInfo { ordinal: 0, name: "a GPU".to_owned(), memory_bytes: 1, dma_buf }
    }

    fn why(ladder: &Ladder, path: Path) -> &str {
        match ladder.verdict(path) {
            Verdict::Works => "works",
            Verdict::Cannot(why) => why,
        }
    }

    #[test]
    fn every_rung_says_why_not() {
        let ladder = Ladder::new(Err("no libcuda.so.1"), Wire::Rdma);
        for path in [Path::GpuDirect, Path::Staged, Path::CuFile] {
            assert_eq!(why(&ladder, path), "no libcuda.so.1");
        }
        assert_eq!(ladder.choose(Policy::Auto).expect("host"), Path::Host);

        let (bare, exporting) = (device(false), device(true));
        let ladder = |device, wire| Ladder::new(Ok(device), wire);
        let direct = |device, wire| why(&ladder(device, wire), Path::GpuDirect).to_owned();
        assert!(direct(&bare, Wire::Rdma).contains("does not export dma-buf"));
        assert!(direct(&exporting, Wire::Other("shared memory")).contains("over shared memory"));
        assert!(direct(&exporting, Wire::Unknown).contains("can tell"));
        assert_eq!(direct(&exporting, Wire::Rdma), "works");
        let mut ladder = ladder(&exporting, Wire::Rdma);
        assert_eq!(ladder.choose(Policy::Auto).expect("one"), Path::GpuDirect);
        ladder.deny(Path::GpuDirect, "rxe0 registers no dma-buf");
        assert_eq!(ladder.choose(Policy::Auto).expect("one"), Path::Staged);
        ladder.admit(Path::GpuDirect);
        assert_eq!(ladder.choose(Policy::AtLeast(Path::GpuDirect)).expect("one"), Path::GpuDirect);
    }

    #[test]
    fn policies_are_written_as_they_are_read() {
        let mut policies = vec![Policy::Auto];
        policies.extend(Path::ALL.map(Policy::AtLeast));
        policies.extend(Path::ALL.map(Policy::Exactly));
        for policy in policies {
            assert_eq!(policy.to_string().parse::<Policy>().expect("its own"), policy);
        }
        let policy: Policy = "staged-or-better".parse().expect("a policy");
        assert_eq!(policy, Policy::AtLeast(Path::Staged));
        for wrong in ["", "Auto", "auto-or-better", "-or-better", "staged-or", "gds"] {
            assert_eq!(wrong.parse::<Policy>().expect_err("no policy").kind(), Kind::Invalid);
        }
    }

    #[test]
    fn cufile_is_looked_for_when_asked_and_never_chosen_for_a_node() {
        let info = device(true);
        let mut ladder = Ladder::new(Ok(&info), Wire::Rdma);
        assert_eq!(why(&ladder, Path::CuFile), NOT_LOOKED_FOR);
        ladder.look_for_local(|| Err(Kind::NotFound.error("no libcufile.so.0")));
        assert_eq!(why(&ladder, Path::CuFile), "no libcufile.so.0");
        ladder.look_for_local(|| unreachable!("once"));

        let mut ladder = Ladder::new(Ok(&info), Wire::Rdma);
        ladder.look_for_local(|| Ok(()));
        assert_eq!(why(&ladder, Path::CuFile), "works");
        ladder.deny(Path::GpuDirect, "rxe0 registers no dma-buf");
        ladder.deny(Path::Staged, "no page was pinned");
        assert_eq!(ladder.choose(Policy::Auto).expect("one"), Path::Host);
        let error = ladder.choose(Policy::Exactly(Path::CuFile)).expect_err("a node's");
        assert!(error.to_string().contains("own files only"), "{error}");

        let mut ladder = Ladder::new(Err("no libcuda.so.1"), Wire::Unknown);
        ladder.look_for_local(|| unreachable!("without a GPU"));
        assert_eq!(why(&ladder, Path::CuFile), "no libcuda.so.1");
        ladder.admit(Path::CuFile);
        assert_eq!(why(&ladder, Path::CuFile), "works");
    }

    #[test]
    fn strict_policies_refuse_to_degrade() {
        let info = device(true);
        let mut ladder = Ladder::new(Ok(&info), Wire::Unknown);
        let refused = |ladder: &Ladder, policy| {
            let error = ladder.choose(policy).expect_err("not allowed");
            assert_eq!(error.kind(), Kind::Unsupported);
            error.to_string()
        };
        let said = refused(&ladder, Policy::Exactly(Path::GpuDirect));
        assert!(said.contains("gpudirect: only a read"), "{said}");
        refused(&ladder, Policy::AtLeast(Path::GpuDirect));
        for policy in [
            Policy::AtLeast(Path::Staged),
            Policy::Exactly(Path::Staged),
            Policy::AtLeast(Path::Host),
        ] {
            assert_eq!(ladder.choose(policy).expect("allowed"), Path::Staged);
        }
        assert_eq!(ladder.choose(Policy::Exactly(Path::Host)).expect("allowed"), Path::Host);

        ladder.deny(Path::Staged, "no page was pinned");
        assert_eq!(ladder.choose(Policy::Auto).expect("one"), Path::Host);
        for policy in [
            Policy::AtLeast(Path::Staged),
            Policy::Exactly(Path::Staged),
            Policy::AtLeast(Path::CuFile),
        ] {
            assert!(refused(&ladder, policy).contains("staged: no page was pinned"));
        }
        assert!(ladder.to_string().contains("staged: no page was pinned; cufile"), "{ladder}");
    }
}
