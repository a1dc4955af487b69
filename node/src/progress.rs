//! How far something is: a bar on a terminal, lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;
use crate::units;

const REDRAW: Duration = Duration::from_millis(100);

/// One operation's progress, on standard error.
pub(crate) struct Meter {
    output: Output,
    what: String,
    bar: Option<ProgressBar>,
    /// Tenths that were announced, where there is no bar.
    announced: Option<u64>,
}

impl Meter {
    /// A meter for `what`, such as `promoting`. Silent with `--json`.
    pub(crate) fn new(output: Output, what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = output.is_lively().then(|| {
            let style = ProgressStyle::with_template(
                "{prefix:12} {bar:30} {bytes:>10} / {total_bytes:<10} {bytes_per_sec:>12}  {msg}",
            )
            .expect("a fixed template");
            let bar = ProgressBar::new(0).with_style(style).with_prefix(what.clone());
            bar.enable_steady_tick(REDRAW);
            bar
        });
        Self { output, what, bar, announced: None }
    }

    /// Reports bytes done of bytes known so far, and a word about it.
    pub(crate) fn update(&mut self, done: u64, total: u64, word: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(done));
            bar.set_position(done);
            bar.set_message(word.to_owned());
            return;
        }
        // A file may grow while it is moved.
        let total = if total == 0 { 0 } else { total.max(done) };
        let tenth = done.saturating_mul(10).checked_div(total).unwrap_or(0);
        if self.announced.is_none_or(|before| tenth > before) && total > 0 {
            self.announced = Some(tenth);
            let gap = if word.is_empty() { "" } else { ", " };
            self.output.note(format!(
                "{}: {} of {}{gap}{word}",
                self.what,
                units::bytes(done),
                units::bytes(total)
            ));
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(self) {
        drop(self);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
