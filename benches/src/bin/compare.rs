//! `compare`: Forebay against its rivals, on this machine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, io};

use clap::Parser;
use extent::{Error, Kind, Result};
use forebay_benches::cases::{self, Case};
use forebay_benches::clock;
use forebay_benches::setup::Setup;
use forebay_benches::verdict::Line;

const AFTER_HELP: &str = "\
Runs a real node (the `forebay` binary beside this one) and the rival in turns, at least 5 pairs, and
judges the median of the pairs' ratios; more than 1 is better for us. Build both with --release.

A case whose rival is not installed is skipped, with how to install it. The exit status is 0 unless
a case failed to run: whether targets were met is in the output.

Examples:
  compare --list
  compare local-read-4k --seconds 5
  compare all --json
  compare promote-dir --dir /srv/datasets/small
  compare all --rivals-only --pairs 1";

/// Compare Forebay with the tools that people use today.
#[derive(Parser)]
#[command(name = "compare", after_help = AFTER_HELP, arg_required_else_help = true)]
struct Arguments {
    /// Cases to run, or `all`
    #[arg(value_name = "CASE", required_unless_present = "list")]
    cases: Vec<String>,

    /// List the cases
    #[arg(long)]
    list: bool,

    /// Print one line of JSON for each case
    #[arg(long)]
    json: bool,

    /// Pairs of runs; fewer than 5 pass nothing
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pairs: usize,

    /// Seconds of each run
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Bytes of the file that is read or the tree that is promoted, such as 2GiB
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = bytes)]
    size: u64,

    /// Promote this directory instead of a generated one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Where to make files, on a file system with direct I/O; beside this program unless told
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// The node's binary; beside this program unless told
    #[arg(long, value_name = "FILE")]
    forebay: Option<PathBuf>,

    /// Requests in flight, instead of each case's own
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    depth: Option<usize>,

    /// Shards of the node, instead of its own choice
    #[arg(long, value_name = "N")]
    shards: Option<usize>,

    /// Run only the rivals, to see whether they work
    #[arg(long)]
    rivals_only: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nothing is left to do if this cannot be printed.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all cases could be run.
fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        for case in &cases::ALL {
            print(&format!(
                "{:<18} target {:<5} {}",
                case.terms.case, case.terms.target, case.about
            ))?;
        }
        return Ok(true);
    }
    // As a node does.
    let begin = clock::now();
    extent::checksum::choose(|| begin.elapsed());
    let mut sound = true;
    for case in chosen(&arguments.cases)? {
        let line = run_one(&case, arguments)?;
        sound &= !line.is_error();
        print(&if arguments.json {
            serde_json::to_string(&line).map_err(|e| Kind::Io.error("writing JSON").caused_by(e))?
        } else {
            line.to_string()
        })?;
    }
    Ok(sound)
}

fn run_one(case: &Case, arguments: &Arguments) -> Result<Line> {
    let beside = beside_this()?;
    let work = arguments.work.clone().unwrap_or_else(|| beside.clone());
    // Removed when the case has ended.
    let directory = tempfile::Builder::new()
        .prefix("compare-")
        .tempdir_in(&work)
        .map_err(|e| Error::io(format!("making a directory in {}", work.display()), e))?;
    let forebay = if arguments.rivals_only || !case.needs_node {
        None
    } else {
        Some(node_binary(arguments.forebay.as_deref(), &beside)?)
    };
    let setup = Setup {
        directory: directory.path().to_owned(),
        forebay,
        seconds: arguments.seconds,
        size_bytes: arguments.size,
        tree: arguments.dir.clone(),
        pairs: arguments.pairs,
        depth: arguments.depth,
        shards: arguments.shards,
    };
    Ok(case.run(&setup, arguments.rivals_only))
}

fn chosen(names: &[String]) -> Result<Vec<Case>> {
    if names.iter().any(|name| name == "all") {
        return Ok(cases::ALL.into_iter().collect());
    }
    names
        .iter()
        .map(|name| {
            cases::find(name).ok_or_else(|| {
                Kind::Invalid.error(format!("there is no case {name}: see compare --list"))
            })
        })
        .collect()
}

fn beside_this() -> Result<PathBuf> {
    let own = env::current_exe().map_err(|e| Error::io("looking for this program", e))?;
    Ok(own.parent().unwrap_or(Path::new(".")).to_owned())
}

fn node_binary(told: Option<&Path>, beside: &Path) -> Result<PathBuf> {
    let path = told.map_or_else(|| beside.join("forebay"), Path::to_owned);
    if path.is_file() {
        return Ok(path);
    }
    Err(Kind::NotFound.error(format!(
        "there is no node at {}: build it with cargo build --release, or say --forebay",
        path.display()
    )))
}

fn print(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|e| Error::io("printing", e))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| *count != 0)
        .ok_or_else(|| "write a number from 1 on".to_owned())
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" | "B" => Some(0),
        "KiB" | "K" => Some(10),
        "MiB" | "M" => Some(20),
        "GiB" | "G" => Some(30),
        _ => None,
    };
    let scaled = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    scaled.filter(|bytes| *bytes != 0).ok_or_else(|| "write bytes, such as 2GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        for bad in ["", "0", "x", "1 GiB", "99999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(chosen(&["all".to_owned()]).expect("all").len(), cases::ALL.len());
        assert!(chosen(&["nothing".to_owned()]).is_err());
    }
}
