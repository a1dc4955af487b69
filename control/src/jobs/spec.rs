//! What a job is to do, parsed from how the protocol says it.

use std::fmt;
use std::time::Duration;

use extent::{ByteRange, FileName, Generation, Kind, Result};

use crate::clock::{UnixMs, from_timestamp, millis};
use crate::proto;
use crate::proto::target::What;

/// Targets of a job, at most.
pub(crate) const MAX_TARGETS: usize = 1024;
/// Bytes of an owner's name or a request id, at most.
pub(crate) const MAX_ID_BYTES: usize = 128;
/// The longest pin.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// What a job does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    Promote,
    Demote,
    Writeback,
    Scrub,
}

impl Task {
    pub(crate) fn kind(self) -> proto::JobKind {
        match self {
            Self::Promote => proto::JobKind::Promote,
            Self::Demote => proto::JobKind::Demote,
            Self::Writeback => proto::JobKind::Writeback,
            Self::Scrub => proto::JobKind::Scrub,
        }
    }
}

/// What to act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Selection {
    File(FileName, Option<ByteRange>),
    Prefix { silo: String, key: String },
}

impl Selection {
    /// Parses a target.
    ///
    /// # Errors
    /// [`Kind::Invalid`].
    pub(crate) fn parse(target: &proto::Target) -> Result<Self> {
        match &target.what {
            Some(What::File(file)) => Ok(Self::File(file.parse()?, None)),
            Some(What::Range(range)) => {
                if range.length == 0 {
                    return Err(Kind::Invalid.error("a range has at least one byte"));
                }
                let bytes = ByteRange::new(range.offset, range.length)?;
                Ok(Self::File(range.file.parse()?, Some(bytes)))
            }
            Some(What::Prefix(prefix)) => Self::prefix(prefix),
            None => Err(Kind::Invalid.error("a target names a file, a prefix or a range")),
        }
    }

    fn prefix(text: &str) -> Result<Self> {
        let (silo, key) = text.split_once('/').ok_or_else(|| {
            Kind::Invalid.error(format!(
                "{text:?} is not a prefix: write silo/beginning-of-key, or silo/ for all of it"
            ))
        })?;
        // Any key will do to check the silo's name, and a prefix of a good key is one.
        FileName::new(silo, if key.is_empty() { "x" } else { key })?;
        Ok(Self::Prefix { silo: silo.to_owned(), key: key.to_owned() })
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name, None) => write!(f, "{name}"),
            Self::File(name, Some(range)) => write!(f, "{name}[{range}]"),
            Self::Prefix { silo, key } => write!(f, "{silo}/{key}"),
        }
    }
}

/// The pin that each file of a promote gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct JobPin {
    pub(crate) owner: String,
    pub(crate) until_ms: UnixMs,
}

/// What a job is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Spec {
    pub(crate) task: Task,
    pub(crate) targets: Vec<Selection>,
    pub(crate) expected: Option<Generation>,
    pub(crate) deadline_ms: Option<UnixMs>,
    pub(crate) durable: bool,
    pub(crate) pin: Option<JobPin>,
    /// For a scrub: the most to read, in bytes a second.
    pub(crate) rate_bytes_per_s: Option<u64>,
}

impl Spec {
    /// Parses a job as it is stored or about to be.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the reason.
    pub(crate) fn parse(job: &proto::Job) -> Result<Self> {
        let task = match job.kind() {
            proto::JobKind::Promote => Task::Promote,
            proto::JobKind::Demote => Task::Demote,
            proto::JobKind::Writeback => Task::Writeback,
            proto::JobKind::Scrub => Task::Scrub,
            proto::JobKind::Unspecified => {
                return Err(Kind::Invalid.error("a job promotes, demotes, writes back or scrubs"));
            }
        };
        let is_scrub = task == Task::Scrub;
        if is_scrub && (!job.targets.is_empty() || job.expected_generation.is_some()) {
            return Err(Kind::Invalid.error("a scrub is of the whole tier: it has no targets"));
        }
        if !is_scrub && job.targets.is_empty() || job.targets.len() > MAX_TARGETS {
            return Err(Kind::Invalid.error(format!(
                "{} targets, and a job has 1 to {MAX_TARGETS}: use prefixes, or several jobs",
                job.targets.len()
            )));
        }
        let targets: Vec<_> = job.targets.iter().map(Selection::parse).collect::<Result<_>>()?;
        check_targets(task, &targets, job.expected_generation)?;
        let created = job.created.as_ref().and_then(from_timestamp).unwrap_or_default();
        Ok(Self {
            task,
            targets,
            expected: job.expected_generation.map(Generation),
            deadline_ms: job.deadline.as_ref().and_then(from_timestamp),
            durable: job.durable,
            pin: job.pin.as_ref().map(|pin| pin_until(pin, created)).transpose()?,
            rate_bytes_per_s: Some(job.rate_bytes_per_s).filter(|rate| *rate > 0),
        })
    }
}

fn check_targets(task: Task, targets: &[Selection], expected: Option<u64>) -> Result<()> {
    let is_range = |target: &Selection| matches!(target, Selection::File(_, Some(_)));
    if task == Task::Writeback && targets.iter().any(is_range) {
        return Err(Kind::Invalid.error("a writeback copies whole files: leave the range out"));
    }
    let is_one = matches!(targets, [Selection::File(..)]);
    if expected.is_some() && !is_one {
        return Err(Kind::Invalid.error(
            "expected_generation goes with a single file or range: send one job for each file",
        ));
    }
    if expected == Some(0) {
        // A job that starts again after a restart would find the file that it made known itself.
        return Err(Kind::Invalid.error("a job's expected_generation is at least 1"));
    }
    Ok(())
}

/// Whose pin, and until when if it begins at `from`.
///
/// # Errors
/// [`Kind::Invalid`].
pub(crate) fn pin_until(pin: &proto::PinOptions, from: UnixMs) -> Result<JobPin> {
    check_id("a pin's owner", &pin.owner)?;
    let ttl = pin.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
    let ttl = ttl.filter(|ttl| millis(*ttl) > 0 && *ttl <= MAX_TTL).ok_or_else(|| {
        Kind::Invalid.error("a pin needs a ttl of at least 1 ms and at most 366 days")
    })?;
    Ok(JobPin { owner: pin.owner.clone(), until_ms: from.saturating_add(millis(ttl)) })
}

/// Checks an owner's name or a request id.
///
/// # Errors
/// [`Kind::Invalid`].
pub(crate) fn check_id(what: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > MAX_ID_BYTES || text.chars().any(char::is_control) {
        return Err(Kind::Invalid
            .error(format!("{what} has 1 to {MAX_ID_BYTES} bytes without control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(what: What) -> proto::Target {
        proto::Target { what: Some(what) }
    }

    fn range(offset: u64, length: u64) -> proto::Target {
        target(What::Range(proto::FileRange { file: "data/a".into(), offset, length }))
    }

    fn job(kind: proto::JobKind, targets: Vec<proto::Target>) -> proto::Job {
        proto::Job { kind: kind.into(), targets, ..proto::Job::default() }
    }

    #[test]
    fn targets_are_parsed_once() {
        let parse = |what| Selection::parse(&target(what)).map(|selection| selection.to_string());
        assert_eq!(parse(What::File("data/a/b".into())).expect("a file"), "data/a/b");
        assert_eq!(parse(What::Prefix("data/".into())).expect("a silo"), "data/");
        assert_eq!(parse(What::Prefix("data/a".into())).expect("a prefix"), "data/a");
        assert_eq!(Selection::parse(&range(5, 7)).expect("a range").to_string(), "data/a[5..12]");
        for bad in ["data", "/a", "", "da ta/"] {
            assert_eq!(parse(What::Prefix(bad.into())).expect_err(bad).kind(), Kind::Invalid);
        }
        for bad in [range(0, 0), range(u64::MAX, 1), proto::Target { what: None }] {
            assert_eq!(Selection::parse(&bad).expect_err("bad").kind(), Kind::Invalid);
        }
    }

    #[test]
    fn jobs_that_make_no_sense_are_refused() {
        use proto::JobKind::{Demote, Promote, Unspecified, Writeback};
        let file = || target(What::File("data/a".into()));
        let prefix = || target(What::Prefix("data/".into()));
        let refused = |job: proto::Job| {
            assert_eq!(Spec::parse(&job).expect_err("refused").kind(), Kind::Invalid);
        };
        refused(job(Promote, vec![]));
        refused(job(Promote, vec![file(); MAX_TARGETS + 1]));
        refused(job(Unspecified, vec![file()]));
        refused(job(Writeback, vec![range(0, 1)]));
        refused(proto::Job { expected_generation: Some(0), ..job(Demote, vec![file()]) });
        let expecting =
            |targets| proto::Job { expected_generation: Some(1), ..job(Demote, targets) };
        refused(expecting(vec![prefix()]));
        refused(expecting(vec![file(), file()]));
        Spec::parse(&expecting(vec![file()])).expect("one file");
        Spec::parse(&expecting(vec![range(0, 1)])).expect("one range");
    }

    #[test]
    fn pins_need_an_owner_and_a_time() {
        let ttl = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let pin = |owner: &str, ttl| proto::PinOptions { owner: owner.into(), ttl };
        let good = pin_until(&pin("job 17", ttl(2, 0)), 1000).expect("a pin");
        assert_eq!(good.until_ms, 3000);
        let long = "x".repeat(MAX_ID_BYTES + 1);
        for bad in [
            pin("", ttl(1, 0)),
            pin("a\nb", ttl(1, 0)),
            pin(&long, ttl(1, 0)),
            pin("a", None),
            pin("a", ttl(0, 1)),
            pin("a", ttl(-1, 0)),
            pin("a", ttl(367 * 24 * 3600, 0)),
        ] {
            assert_eq!(pin_until(&bad, 0).expect_err("bad").kind(), Kind::Invalid);
        }
    }
}
