//! What became of a job's files so far.

use dataplane::FileStatus;
use extent::{Error, Result};

use crate::proto;

/// Errors kept of a job.
const ERRORS: usize = 32;
/// Results kept of a job.
const RESULTS: usize = 64;
/// Bytes of an error's sentence that are kept.
const SENTENCE_BYTES: usize = 512;

/// Counts, and the first few results in words.
#[derive(Default)]
pub(super) struct Tally {
    found: u64,
    done: u64,
    failed: u64,
    targets_failed: u64,
    errors: Vec<proto::FileResult>,
    results: Vec<proto::FileResult>,
}

impl Tally {
    /// So many more files are to be done.
    pub(super) fn found(&mut self, files: usize) {
        self.found += files as u64;
    }

    /// A prefix could not be listed to its end.
    pub(super) fn target_failed(&mut self, target: &str, error: Error) {
        self.targets_failed += 1;
        self.note_error(result_of(target, &Err(error)));
    }

    /// A file's turn is over.
    pub(super) fn settled(&mut self, file: &str, outcome: &Result<FileStatus>) {
        let result = result_of(file, outcome);
        match outcome {
            Ok(_) => self.done += 1,
            Err(_) => {
                self.failed += 1;
                self.note_error(result.clone());
            }
        }
        if self.results.len() < RESULTS {
            self.results.push(result);
        }
    }

    /// The counts. `bytes` are those done and those announced.
    pub(super) fn progress(&self, bytes: (u64, u64), expanded: bool) -> proto::JobProgress {
        proto::JobProgress {
            files_total: self.found,
            files_done: self.done,
            files_failed: self.failed,
            targets_failed: self.targets_failed,
            bytes_done: bytes.0,
            bytes_total: bytes.1,
            expanded,
        }
    }

    /// The first errors.
    pub(super) fn errors(&self) -> &Vec<proto::FileResult> {
        &self.errors
    }

    /// The first results, errors or not.
    pub(super) fn results(&self) -> &Vec<proto::FileResult> {
        &self.results
    }

    /// Whether anything failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed + self.targets_failed > 0
    }

    fn note_error(&mut self, result: proto::FileResult) {
        if self.errors.len() < ERRORS {
            self.errors.push(result);
        }
    }
}

fn result_of(file: &str, outcome: &Result<FileStatus>) -> proto::FileResult {
    let mut result = proto::FileResult { file: file.to_owned(), ..proto::FileResult::default() };
    match outcome {
        Ok(status) => {
            result.generation = status.generation.0;
            result.resident_bytes = status.resident_bytes;
        }
        Err(error) => {
            result.error_kind = error.kind().name().to_owned();
            result.error = error.to_string();
            let end = result.error.floor_char_boundary(SENTENCE_BYTES);
            result.error.truncate(end);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use extent::Kind;

    use super::*;

    #[test]
    fn only_the_first_errors_are_kept_and_none_is_long() {
        let mut tally = Tally::default();
        for _ in 0..100 {
            tally.settled("data/a", &Err(Kind::Io.error("ä".repeat(SENTENCE_BYTES))));
        }
        tally.target_failed("data/", Kind::Denied.error("no"));
        let progress = tally.progress((1, 2), true);
        assert_eq!((progress.files_failed, progress.targets_failed), (100, 1));
        assert_eq!((tally.errors().len(), tally.results().len()), (ERRORS, RESULTS));
        assert!(tally.errors().iter().all(|error| error.error.len() <= SENTENCE_BYTES));
        assert!(tally.has_failed());
    }
}
