//! The cases, one a module.

mod capi;
mod checked;
mod checksums;
mod crc;
mod http;
mod idle;
mod local;
mod lookup;
mod nbd;
mod nvme;
mod promote;
mod rdma;
mod read;
mod recovery;
mod start;
mod tcp;

use extent::Result;

use crate::pairs::{self, Duel, Measure, Terms};
use crate::setup::Setup;
use crate::verdict::{Line, Setback};

/// One comparison.
pub struct Case {
    /// What it is called, what scores count, and what is to be reached.
    pub terms: Terms,
    /// One line for people.
    pub about: &'static str,
    /// Whether it runs a node, and so needs the node's binary.
    pub needs_node: bool,
    /// Whether it is against a rival, rather than a limit.
    has_rival: bool,
    set_up: fn(&Setup) -> Result<Contest, Setback>,
}

/// What a case runs.
pub enum Contest {
    /// Against a rival.
    Duel(Box<dyn Duel>),
    /// Against a limit, which must not be exceeded.
    Limit {
        /// What is measured.
        measure: Box<dyn Measure>,
        /// The limit.
        limit: f64,
        /// The least that can be told from nothing.
        least: f64,
    },
}

/// A measurement against a limit is repeated no more often than this.
const MOST_LIMIT_RUNS: usize = 3;

/// All cases.
pub const ALL: [Case; 31] = [
    local::ONE_MEGABYTE,
    local::FOUR_KILOBYTES,
    capi::CASE,
    tcp::CASE,
    nbd::CASE,
    http::CASE,
    promote::CASE,
    idle::CASE,
    start::CASE,
    checksums::CASE,
    lookup::CASE,
    recovery::SPEED,
    recovery::MEMORY,
    crc::CASE,
    nvme::PASSTHROUGH,
    nvme::VFIO,
    nvme::VFIO_VERIFIED,
    nvme::DOORBELLS,
    checked::VERIFIED,
    checked::UNVERIFIED,
    rdma::READ,
    rdma::READ_VERIFIED,
    rdma::SMALL,
    rdma::SMALL_VERIFIED,
    rdma::WRITE,
    rdma::WRITE_VERIFIED,
    rdma::LATENCY,
    rdma::LATENCY_BRD,
    rdma::INSTRUCTIONS,
    rdma::INSTRUCTIONS_BESIDE,
    rdma::SCALE,
];

/// The case of a name.
#[must_use]
pub fn find(name: &str) -> Option<Case> {
    ALL.into_iter().find(|case| case.terms.case == name)
}

impl Case {
    /// Runs it: pairs, or with `rivals_only` the rival alone.
    #[must_use]
    pub fn run(&self, setup: &Setup, rivals_only: bool) -> Line {
        let case = self.terms.case;
        match self.try_run(setup, rivals_only) {
            Ok(line) => line,
            Err(Setback::Skipped(skipped)) => Line::Skipped { case, skipped },
            Err(Setback::Failed(error)) => Line::Failed { case, error: format!("{error:?}") },
        }
    }

    fn try_run(&self, setup: &Setup, rivals_only: bool) -> Result<Line, Setback> {
        if rivals_only && !self.has_rival {
            return Err(Setback::Skipped("this case has a limit instead of a rival".to_owned()));
        }
        Ok(match (self.set_up)(setup)? {
            Contest::Duel(mut duel) if rivals_only => {
                Line::Rival(pairs::run_rival(&mut *duel, self.terms, setup.pairs)?)
            }
            Contest::Duel(mut duel) => {
                Line::Verdict(pairs::run(&mut *duel, self.terms, setup.pairs)?)
            }
            Contest::Limit { mut measure, limit, least } => {
                let runs = setup.pairs.min(MOST_LIMIT_RUNS);
                let verdict = pairs::run_limited(&mut *measure, self.terms, limit, least, runs)?;
                Line::Verdict(verdict)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let names: HashSet<_> = ALL.iter().map(|case| case.terms.case).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| find(name).is_some()));
        assert!(find("no-such-case").is_none());
    }
}
