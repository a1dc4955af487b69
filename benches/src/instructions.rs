//! Instructions that a guest executed, as the plugin that `ci/lab/run --plugin` loads tells them.

use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, thread};

use extent::{Error, Kind, Result};

use crate::{clock, marks};

const TOLD_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The plugin's words. It tells its counts each time it is asked by a mark.
pub struct Counters {
    log: PathBuf,
    told: usize,
}

/// Instructions of each processor, in user mode and in the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Count {
    /// In user mode.
    pub user: Vec<u64>,
    /// In the kernel.
    pub kernel: Vec<u64>,
}

impl Counters {
    /// The counters of this guest, if it has any.
    ///
    /// # Errors
    /// [`Kind::Io`] if its log cannot be read.
    pub fn find() -> Result<Option<Self>> {
        let Some(out) = env::var_os("LAB_OUT") else { return Ok(None) };
        let log = PathBuf::from(out).join("plugin.log");
        if !log.exists() {
            return Ok(None);
        }
        let told = lines(&log)?.len();
        let mut counters = Self { log, told };
        // A plugin that does not know the mark says nothing.
        Ok(counters.read().ok().map(|_| counters))
    }

    /// What has been executed up to now.
    ///
    /// # Errors
    /// [`Kind::Io`] if nobody tells.
    pub fn read(&mut self) -> Result<Count> {
        marks::tell();
        let deadline = clock::now() + TOLD_LIMIT;
        loop {
            let lines = lines(&self.log)?;
            if let Some(line) = lines.get(self.told) {
                self.told = lines.len();
                return parse(line).ok_or_else(|| {
                    Kind::Corrupt.error(format!("the plugin tells of its counts as {line:?}"))
                });
            }
            if clock::now() >= deadline {
                return Err(Kind::Io.error("no plugin tells how many instructions were executed"));
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Whole lines about counts.
fn lines(log: &PathBuf) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(log).map_err(|e| Error::io(format!("reading {}", log.display()), e))?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole.lines().filter(|line| line.starts_with("executed")).map(str::to_owned).collect())
}

/// `executed` and then, for each processor, `user+kernel`.
fn parse(line: &str) -> Option<Count> {
    let mut count = Count { user: Vec::new(), kernel: Vec::new() };
    for word in line.split_whitespace().skip(1) {
        let (user, kernel) = word.split_once('+')?;
        count.user.push(user.parse().ok()?);
        count.kernel.push(kernel.parse().ok()?);
    }
    (!count.user.is_empty()).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_plugin_tells_is_read() {
        let count = parse("executed 12+30 5+6").expect("as printed");
        assert_eq!(count, Count { user: vec![12, 5], kernel: vec![30, 6] });
        assert_eq!(parse("executed"), None);
        assert_eq!(parse("executed 1-2"), None);
    }
}
