//! iperf3: what one TCP stream over loopback can carry.

use std::path::{Path, PathBuf};
use std::time::Duration;

use extent::{Kind, Result};
use serde::Deserialize;

use crate::process::{self, Running};
use crate::verdict::Setback;

/// iperf3 on a machine.
#[derive(Clone, Debug)]
pub struct Iperf {
    program: PathBuf,
}

impl Iperf {
    /// iperf3, if it is installed.
    ///
    /// # Errors
    /// [`Setback::Skipped`] if not.
    pub fn find() -> Result<Self, Setback> {
        Ok(Self { program: process::find("iperf3", "iperf3")? })
    }

    /// Bytes a second of one stream, received.
    ///
    /// # Errors
    /// [`Kind::Io`] if iperf3 fails.
    pub fn stream(&self, directory: &Path, seconds: u64) -> Result<f64> {
        let address = process::free_address()?;
        let port = address.port().to_string();
        let serve = ["--server", "--bind", "127.0.0.1", "--port", &port, "--forceflush"];
        let log = directory.join("iperf3.log");
        let mut server = Running::start(
            &mut process::command(&self.program, serve),
            &log,
            Duration::from_secs(5),
        )?;
        // Connecting to see whether it is there would be taken for a test.
        server.wait_until(Duration::from_secs(5), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening"))
        })?;
        let time = seconds.to_string();
        let run =
            ["--client", "127.0.0.1", "--port", &port, "--time", &time, "--omit", "1", "--json"];
        parse(&process::run(&mut process::command(&self.program, run))?)
    }
}

#[derive(Deserialize)]
struct Output {
    end: End,
}

#[derive(Deserialize)]
struct End {
    sum_received: Sum,
}

#[derive(Deserialize)]
struct Sum {
    bits_per_second: f64,
}

fn parse(output: &str) -> Result<f64> {
    let parsed: Output = serde_json::from_str(output)
        .map_err(|e| Kind::Corrupt.error("iperf3's output is not as expected").caused_by(e))?;
    if parsed.end.sum_received.bits_per_second <= 0.0 {
        return Err(Kind::Io.error("iperf3 received nothing"));
    }
    Ok(parsed.end.sum_received.bits_per_second / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_output_is_read() {
        let captured = r#"{ "start": {}, "intervals": [], "end": { "streams": [],
            "sum_sent": { "bytes": 9, "bits_per_second": 40000000000.0 },
            "sum_received": { "bytes": 8, "bits_per_second": 32000000000.0 } } }"#;
        assert_eq!(parse(captured).expect("as iperf3 prints it"), 4e9);
        let error = r#"{ "end": {}, "error": "unable to connect" }"#;
        assert_eq!(parse(error).expect_err("no sum").kind(), Kind::Corrupt);
    }
}
