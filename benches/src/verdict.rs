//! What a case prints.

use std::fmt;

use extent::Error;
use serde::Serialize;

/// Why a case has no numbers.
#[derive(Debug)]
pub enum Setback {
    /// Something that it needs is not on this machine: what, and how to get it.
    Skipped(String),
    /// It went wrong.
    Failed(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

/// One line of output.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Line {
    /// Numbers.
    Verdict(Verdict),
    /// The rival's numbers alone.
    Rival(RivalOnly),
    /// No numbers, for want of something.
    Skipped {
        /// The case.
        case: &'static str,
        /// What is missing, and how to get it.
        skipped: String,
    },
    /// No numbers, because of an error.
    Failed {
        /// The case.
        case: &'static str,
        /// What happened.
        error: String,
    },
}

/// A case's numbers. Greater ratios are better for us, whatever the unit.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Verdict {
    /// The case.
    pub case: &'static str,
    /// Our median.
    pub ours: f64,
    /// The rival's median, or the limit.
    pub rival: f64,
    /// The rival, and how it was run.
    pub rival_name: String,
    /// What `ours` and `rival` count.
    pub unit: &'static str,
    /// The median of the pairs' ratios.
    pub ratio: f64,
    /// The worst pair's.
    pub ratio_min: f64,
    /// The best pair's.
    pub ratio_max: f64,
    /// Pairs.
    pub runs: usize,
    /// The ratio to reach.
    pub target: f64,
    /// Whether `ratio` reaches it.
    pub pass: bool,
}

/// A rival's numbers without ours.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RivalOnly {
    /// The case.
    pub case: &'static str,
    /// The rival's median.
    pub rival: f64,
    /// The rival, and how it was run.
    pub rival_name: String,
    /// What `rival` counts.
    pub unit: &'static str,
    /// Every run.
    pub rival_runs: Vec<f64>,
}

impl Line {
    /// Whether this line makes the whole comparison fail: an error does, a miss of the target and
    /// a missing tool do not.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(v) => write!(
                f,
                "{:<20} {} ratio {:.3} (target {}, {:.3} to {:.3} over {} pairs): ours {} {unit}, {} {} {unit}",
                v.case,
                if v.pass { "PASS" } else { "MISS" },
                v.ratio,
                v.target,
                v.ratio_min,
                v.ratio_max,
                v.runs,
                number(v.ours),
                v.rival_name,
                number(v.rival),
                unit = v.unit,
            ),
            Self::Rival(r) => {
                write!(f, "{:<20} {} {} {}", r.case, r.rival_name, number(r.rival), r.unit)
            }
            Self::Skipped { case, skipped } => write!(f, "{case:<20} SKIPPED: {skipped}"),
            Self::Failed { case, error } => write!(f, "{case:<20} FAILED: {error}"),
        }
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
