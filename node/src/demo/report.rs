//! What the demo measured and found.

use std::time::Duration;

use serde_json::{Value, json};

use super::reader::Reading;
use crate::output::table;
use crate::units;

/// One line of the table.
#[derive(Debug)]
struct Row {
    step: &'static str,
    bytes: u64,
    busy: Duration,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    path: String,
    hits: Option<(u64, u64)>,
}

/// Everything measured and found.
#[derive(Debug, Default)]
pub(super) struct Report {
    files: u64,
    source_bytes: u64,
    pub(super) checkpoint_bytes: u64,
    pub(super) restarts: u64,
    /// Bytes of slots, and of the files in them, when most was on the node.
    pub(super) space: (u64, u64),
    verified_bytes: u64,
    mismatches: u64,
    mismatched: Vec<String>,
    recalled_reads: u64,
    rows: Vec<Row>,
}

impl Report {
    /// Nothing measured yet.
    pub(super) fn new(files: u64, source_bytes: u64, checkpoint_bytes: u64) -> Self {
        Self { files, source_bytes, checkpoint_bytes, ..Self::default() }
    }

    /// A step that moved bytes.
    pub(super) fn moved(&mut self, step: &'static str, bytes: u64, busy: Duration, path: &str) {
        let path = path.to_owned();
        self.rows.push(Row { step, bytes, busy, p50_ns: None, p99_ns: None, path, hits: None });
    }

    /// A step that read and compared.
    pub(super) fn read(&mut self, step: &'static str, reading: &Reading) {
        self.verified_bytes += reading.bytes;
        self.mismatches += reading.mismatches;
        self.mismatched.extend(reading.mismatched.iter().cloned());
        self.recalled_reads += reading.recalls;
        self.rows.push(Row {
            step,
            bytes: reading.bytes,
            busy: reading.busy,
            p50_ns: Some(reading.latency.value_at_quantile(0.5)),
            p99_ns: Some(reading.latency.value_at_quantile(0.99)),
            path: reading.path(),
            hits: Some((reading.hits, reading.reads)),
        });
    }

    /// A comparison outside of reading.
    pub(super) fn compared(&mut self, what: &str, bytes: u64, different: u64) {
        self.verified_bytes += bytes;
        self.mismatches += different;
        if different > 0 {
            self.mismatched.push(what.to_owned());
        }
    }

    pub(super) fn mismatches(&self) -> u64 {
        self.mismatches
    }

    pub(super) fn mismatched(&self) -> &[String] {
        &self.mismatched
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let rate = |step: &str| {
            let row = self.rows.iter().find(|row| row.step == step);
            units::round(row.map_or(0.0, |row| per_second(row.bytes, row.busy)))
        };
        let steps: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "step": row.step,
                    "bytes": row.bytes,
                    "bytes_per_s": units::round(per_second(row.bytes, row.busy)),
                    "p50_ns": row.p50_ns,
                    "p99_ns": row.p99_ns,
                    "path": row.path,
                    "hits": row.hits.map(|(hits, _)| hits),
                    "reads": row.hits.map(|(_, reads)| reads),
                })
            })
            .collect();
        json!({
            "files": self.files,
            "source_bytes": self.source_bytes,
            "verified_bytes": self.verified_bytes,
            "mismatches": self.mismatches,
            "promote_bytes_per_s": rate(PROMOTE),
            "read_shm_bytes_per_s": rate(READ_SHM),
            "read_tcp_bytes_per_s": rate(READ_TCP),
            "checkpoint_bytes": self.checkpoint_bytes,
            "recalled_reads": self.recalled_reads,
            "restarts": self.restarts,
            "space_per_byte": units::share(self.space.0, self.space.1),
            "steps": steps,
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let time = |nanos: Option<u64>| nanos.map_or_else(String::new, units::nanos);
                vec![
                    row.step.to_owned(),
                    units::bytes(row.bytes),
                    units::rate(per_second(row.bytes, row.busy)),
                    time(row.p50_ns),
                    time(row.p99_ns),
                    row.hits.map_or_else(String::new, |(hits, reads)| {
                        format!("{:.0} %", units::share(hits, reads) * 100.0)
                    }),
                    row.path.clone(),
                ]
            })
            .collect();
        let heads = ["STEP", ">BYTES", ">SPEED", ">P50", ">P99", ">HITS", "PATH"];
        let verdict = if self.mismatches == 0 { "all equal" } else { "NOT EQUAL" };
        format!(
            "{}\n\n{} verified, {verdict}; {:.2} bytes of the tier for each byte stored\n\
             (latencies are of 1 MiB reads, 16 in flight; source and tier share this machine)",
            table(&heads, &rows),
            units::bytes(self.verified_bytes),
            units::share(self.space.0, self.space.1)
        )
    }
}

pub(super) const PROMOTE: &str = "promote";
pub(super) const READ_SHM: &str = "read, shared memory";
pub(super) const READ_TCP: &str = "read, TCP";

fn per_second(bytes: u64, busy: Duration) -> f64 {
    let seconds = busy.as_secs_f64();
    if seconds > 0.0 { units::to_f64(bytes) / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_what_scripts_look_for() {
        let mut report = Report::new(3, 0, 0);
        report.restarts = 1;
        report.moved(PROMOTE, 1000, Duration::from_millis(500), "silo → tier");
        let mut reading = Reading::new();
        reading.bytes = 4000;
        reading.busy = Duration::from_secs(2);
        reading.mismatches = 1;
        report.read(READ_SHM, &reading);
        report.compared("the copy", 50, 0);
        let value = report.json();
        let expected = [
            ("files", json!(3)),
            ("verified_bytes", json!(4050)),
            ("mismatches", json!(1)),
            ("promote_bytes_per_s", json!(2000)),
            ("read_shm_bytes_per_s", json!(2000)),
            ("read_tcp_bytes_per_s", json!(0)),
            ("checkpoint_bytes", json!(0)),
            ("restarts", json!(1)),
        ];
        for (key, expected) in expected {
            assert_eq!(value[key], expected, "{key}");
        }
        assert!(report.text().contains("NOT EQUAL"));
    }
}
