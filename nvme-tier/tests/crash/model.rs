//! What a file may be after a cut, and what it is found as.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::collections::BTreeSet;
use std::fmt;

use extent::{ExtentIndex, FileName};
use forebay_nvme_tier::device::DeviceIndex;
use forebay_nvme_tier::device::sim::Recorder;
use forebay_nvme_tier::{Copies, Mark, State};

use crate::common::{Rig, name, pattern};

/// What is durable of a file.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Content {
    Absent,
    Clean {
        attempt: u64,
        length: u64,
        version: String,
        mark: Option<Mark>,
        seed: u64,
        written: bool,
    },
    Dirty {
        attempt: u64,
        length: u64,
        base: Option<String>,
        mark: Option<Mark>,
        seed: u64,
        extents: BTreeSet<u32>,
    },
}

impl Content {
    /// The attempt that made it.
    pub fn attempt(&self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Clean { attempt, .. } | Self::Dirty { attempt, .. } => Some(*attempt),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Clean { attempt, length, version, mark, seed, .. } => {
                write!(f, "clean #{attempt} {length} B of {version} {mark:?}, seed {seed}")
            }
            Self::Dirty { attempt, length, base, mark, seed, extents } => write!(
                f,
                "dirty #{attempt} {length} B {extents:?} on {base:?} {mark:?}, seed {seed}"
            ),
        }
    }
}

/// One change of a file's state, from when it was asked for to when it was acknowledged.
#[derive(Clone, Debug)]
pub struct Change {
    pub asked: usize,
    pub acknowledged: Option<usize>,
    pub content: Content,
}

/// An extent of which a flush, acknowledged at a moment, vouches.
#[derive(Clone, Debug)]
pub struct Vouched {
    pub file: usize,
    pub attempt: u64,
    pub index: u32,
    pub from: usize,
}

/// A device that is not there.
pub type Lost = Option<DeviceIndex>;

/// A run and all that is known of it.
pub struct Run {
    pub names: Vec<FileName>,
    pub changes: Vec<Vec<Change>>,
    pub vouched: Vec<Vouched>,
    /// From when on a file's extents may go for other reasons.
    pub dropped: Vec<(usize, usize)>,
    /// Files that something was asked of when the process died, and between which moments nobody
    /// can tell what became of it.
    pub blind: Vec<(usize, usize, usize)>,
    /// How many copies there are of what is written.
    pub copies: Copies,
    /// The device that it went without.
    pub absent: Lost,
    /// Attempts that were given out, and when.
    pub attempts: Vec<(usize, u64)>,
    pub recorder: Recorder,
}

/// A file on a recovered tier.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Seen {
    pub content: Content,
    /// Extents that are there, and right.
    pub extents: BTreeSet<u32>,
    /// Extents of clean files that are said to be there, and are not: the silo has them.
    pub lost: BTreeSet<u32>,
}

/// A recovered tier, as far as the model goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Observed {
    pub files: Vec<Seen>,
    /// The first attempt that it gives out.
    pub next_attempt: u64,
}

/// What a recovered tier holds; an error for what is wrong in any state: bytes that are not those of
/// their attempt, something dirty that is damaged, a quarantine.
pub fn observe(rig: &Rig, names: &[FileName]) -> Result<Observed, String> {
    let files = names.iter().map(|name| observe_file(rig, name)).collect::<Result<_, _>>()?;
    let draft = rig.tier.begin(name("s/probe"), 0).map_err(|error| error.to_string())?;
    Ok(Observed { files, next_attempt: draft.attempt().0 })
}

fn observe_file(rig: &Rig, name: &FileName) -> Result<Seen, String> {
    let (mut extents, mut lost) = (BTreeSet::new(), BTreeSet::new());
    let Some(file) = rig.find(name) else {
        return Ok(Seen { content: Content::Absent, extents, lost });
    };
    if file.name() != name {
        return Err(format!("{name} is called {}", file.name()));
    }
    let generation = file.newest();
    let attempt = generation.attempt().0;
    let seed = attempt;
    if generation.mark() == Some(Mark::Quarantined) {
        return Err(format!("{name} is quarantined"));
    }
    for index in 0..generation.extent_count() {
        let Some(extent) = generation.extent(ExtentIndex(index)) else { continue };
        let expected = pattern(seed, index, extent.length() as usize);
        if generation.state() == State::Dirty && !extent.has_checksums() {
            return Err(format!(
                "of extent {index} of dirty {name} only the descriptor has checksums"
            ));
        }
        match rig.read(&generation, &extent) {
            Some(bytes) if bytes == expected[..bytes.len()] => {
                extents.insert(index);
            }
            Some(_) => return Err(format!("extent {index} of {name} holds something else")),
            // The checksum tells that its data is lost: the silo has it.
            None if generation.state() == State::Clean => {
                lost.insert(index);
            }
            None => return Err(format!("extent {index} of dirty {name} is damaged")),
        }
    }
    let text = |version: Option<extent::SourceVersion>| version.map(|v| v.as_str().to_owned());
    let (length, mark) = (generation.length(), generation.mark());
    let content = match generation.state() {
        State::Dirty => {
            let (base, extents) = (text(generation.base()), extents.clone());
            Content::Dirty { attempt, length, base, mark, seed, extents }
        }
        State::Clean => Content::Clean {
            attempt,
            length,
            version: text(generation.version()).ok_or("clean, and of no version")?,
            mark,
            seed,
            written: generation.is_written(),
        },
    };
    Ok(Seen { content, extents, lost })
}

/// Whether a recovered tier is what the model allows after a cut.
pub fn judge(run: &Run, found: &Observed, moment: usize) -> Result<(), String> {
    let given = run.attempts.iter().filter(|(at, _)| *at <= moment).map(|(_, attempt)| *attempt);
    if let Some(last) = given.max().filter(|last| found.next_attempt <= *last) {
        let next = found.next_attempt;
        return Err(format!("attempt {next} would be given out after {last} was"));
    }
    for (file, seen) in found.files.iter().enumerate() {
        let open =
            |(f, from, to): &(usize, usize, usize)| *f == file && (*from..*to).contains(&moment);
        let possible = possible(&run.changes[file], moment);
        if !run.blind.iter().any(open) && !possible.contains(&&seen.content) {
            let name = &run.names[file];
            return Err(format!("{name} is {:?} and may be {possible:?}", seen.content));
        }
    }
    run.vouched.iter().filter(|vouched| vouched.from <= moment).try_for_each(|vouched| {
        let history = &run.changes[vouched.file];
        let changed = |change: &Change| change.asked > 0 && change.asked <= moment;
        let dropped = run.dropped.iter().any(|(file, at)| *file == vouched.file && *at <= moment);
        // Its generation may be gone, or its extents let go, by what was asked for later.
        let current = history.iter().rfind(|change| changed(change)).map(|change| &change.content);
        let same =
            matches!(current, Some(Content::Clean { attempt, .. }) if *attempt == vouched.attempt);
        if same && !dropped && !found.files[vouched.file].extents.contains(&vouched.index) {
            let name = &run.names[vouched.file];
            return Err(format!("extent {} of {name} was flushed and is gone", vouched.index));
        }
        Ok(())
    })
}

/// Whether a recovered tier is what the model allows after a cut that took a device, too: what is clean
/// may be gone with it, and what is dirty may not; and nothing is older than it may be.
pub fn judge_without(run: &Run, found: &Observed, moment: usize) -> Result<(), String> {
    for (file, seen) in found.files.iter().enumerate() {
        let open =
            |(f, from, to): &(usize, usize, usize)| *f == file && (*from..*to).contains(&moment);
        if run.blind.iter().any(open) {
            continue;
        }
        let possible = possible(&run.changes[file], moment);
        let gone = |content: &&Content| matches!(content, Content::Clean { .. });
        let legal = possible.contains(&&seen.content)
            || seen.content == Content::Absent && possible.iter().any(gone);
        if !legal {
            let name = &run.names[file];
            return Err(format!("{name} is {:?} and may be {possible:?}", seen.content));
        }
    }
    Ok(())
}

/// Whether two tiers hold the same, but for clean files that the second may lack.
pub fn same_but_clean(whole: &Observed, rest: &Observed) -> bool {
    whole.files.iter().zip(&rest.files).all(|(whole, rest)| {
        let gone =
            matches!(whole.content, Content::Clean { .. }) && rest.content == Content::Absent;
        gone || whole.content == rest.content
    })
}

/// What a file may be after a cut: what was acknowledged last, and all that was asked for since.
pub fn possible(history: &[Change], moment: usize) -> Vec<&Content> {
    let certain = history
        .iter()
        .rposition(|change| change.acknowledged.is_some_and(|at| at <= moment))
        .expect("the beginning is acknowledged");
    let after = history[certain..].iter().enumerate();
    let after = after.filter(|(after, change)| *after == 0 || change.asked <= moment);
    after.map(|(_, change)| &change.content).collect()
}
