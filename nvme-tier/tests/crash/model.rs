//! What a file may be after a cut, and what it is found as.
#![allow(unreachable_pub, reason = "used by the other modules of this test")]

use std::collections::BTreeSet;
use std::fmt;

use extent::{ExtentIndex, FileName, Result};
use forebay_nvme_tier::device::sim::Recorder;
use forebay_nvme_tier::{Mark, State};

use crate::common::{Rig, pattern};

/// What is durable of a file.
#[derive(Clone, PartialEq, Eq)]
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
    pub recorder: Recorder,
}

/// What a file is on a recovered tier, and how it fails the model whatever it is: its attempt must
/// be one of the history, if one is given.
pub fn observe(rig: &Rig, name: &FileName, history: Option<&[Change]>) -> Result<Content, String> {
    let Some(file) = rig.find(name) else { return Ok(Content::Absent) };
    let generation = file.newest();
    let attempt = generation.attempt().0;
    let seed = attempt;
    let is_known = |change: &Change| match &change.content {
        Content::Absent => false,
        Content::Clean { attempt: a, .. } | Content::Dirty { attempt: a, .. } => *a == attempt,
    };
    if !history.is_none_or(|history| history.iter().any(is_known)) {
        return Err(format!("attempt {attempt} of {name} never succeeded"));
    }
    if generation.mark() == Some(Mark::Quarantined) {
        return Err(format!("{name} is quarantined"));
    }
    let mut extents = BTreeSet::new();
    for index in 0..generation.extent_count() {
        let Some(extent) = generation.extent(ExtentIndex(index)) else { continue };
        let expected = pattern(seed, index, extent.length() as usize);
        match rig.read(&extent) {
            Some(bytes) if bytes == expected[..bytes.len()] => {
                extents.insert(index);
            }
            Some(_) => return Err(format!("extent {index} of {name} holds something else")),
            // The checksum tells that its data is lost: the silo has it.
            None if generation.state() == State::Clean => {}
            None => return Err(format!("extent {index} of dirty {name} is damaged")),
        }
    }
    let text = |version: Option<extent::SourceVersion>| version.map(|v| v.as_str().to_owned());
    let (length, mark) = (generation.length(), generation.mark());
    Ok(match generation.state() {
        State::Dirty => {
            Content::Dirty { attempt, length, base: text(generation.base()), mark, seed, extents }
        }
        State::Clean => Content::Clean {
            attempt,
            length,
            version: text(generation.version()).ok_or("clean, and of no version")?,
            mark,
            seed,
            written: generation.is_written(),
        },
    })
}

/// Whether a recovered tier is what the model allows after a cut. What each file was found as.
pub fn judge(run: &Run, rig: &Rig, moment: usize) -> Result<Vec<Content>, String> {
    let mut found = Vec::new();
    for (file, name) in run.names.iter().enumerate() {
        let history = &run.changes[file];
        let open =
            |(f, from, to): &(usize, usize, usize)| *f == file && (*from..*to).contains(&moment);
        if run.blind.iter().any(open) {
            found.push(observe(rig, name, None)?);
            continue;
        }
        let content = observe(rig, name, Some(history))?;
        let certain = history
            .iter()
            .rposition(|change| change.acknowledged.is_some_and(|at| at <= moment))
            .expect("the beginning is acknowledged");
        let possible = history[certain..].iter().enumerate();
        let possible = possible.filter(|(after, change)| *after == 0 || change.asked <= moment);
        let possible: Vec<&Content> = possible.map(|(_, change)| &change.content).collect();
        if !possible.contains(&&content) {
            return Err(format!("{name} is {content:?} and may be {possible:?}"));
        }
        found.push(content);
    }
    for vouched in run.vouched.iter().filter(|vouched| vouched.from <= moment) {
        let history = &run.changes[vouched.file];
        let changed = |change: &Change| change.asked > 0 && change.asked <= moment;
        let dropped = run.dropped.iter().any(|(file, at)| *file == vouched.file && *at <= moment);
        // Its generation may be gone, or its extents let go, by what was asked for later.
        let current = history.iter().rfind(|change| changed(change)).map(|change| &change.content);
        let same =
            matches!(current, Some(Content::Clean { attempt, .. }) if *attempt == vouched.attempt);
        if same && !dropped {
            let generation =
                rig.find(&run.names[vouched.file]).ok_or("a vouched file is gone")?.newest();
            if !rig.holds(&generation, vouched.index, vouched.attempt) {
                return Err(format!("extent {} of {} was flushed", vouched.index, vouched.file));
            }
        }
    }
    Ok(found)
}
