//! perftest: what two RDMA devices carry, without anybody who serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use extent::{Error, Kind, Result};

use crate::cable::{CLIENT_CORE, Cable, End, NODE_CORE};
use crate::process::{self, Running};
use crate::stream::on_core;
use crate::verdict::Setback;

/// Queue depths that are tried.
const DEPTHS: [usize; 4] = [2, 8, 32, 128];
const READY_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// A device that drops packets is given time to send them again, as ours is: 4.096 µs << 18.
const TIMEOUT: &str = "18";

/// Which of its programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// RDMA WRITEs, as many as fit.
    WriteBandwidth,
    /// RDMA READs, likewise.
    ReadBandwidth,
    /// One RDMA WRITE after the other, to and fro; times are of one way.
    WriteLatency,
    /// One SEND after the other, likewise.
    SendLatency,
}

impl Program {
    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteBandwidth => "ib_write_bw",
            Self::ReadBandwidth => "ib_read_bw",
            Self::WriteLatency => "ib_write_lat",
            Self::SendLatency => "ib_send_lat",
        }
    }

    const fn is_bandwidth(self) -> bool {
        matches!(self, Self::WriteBandwidth | Self::ReadBandwidth)
    }
}

/// One of its programs, between the two ends of a cable.
#[derive(Clone, Debug)]
pub struct Perftest {
    program: Program,
    path: PathBuf,
    cable: Cable,
    directory: PathBuf,
    message_bytes: u64,
    /// Work requests outstanding (of bandwidths only).
    pub depth: usize,
}

impl Perftest {
    /// The program, if it is installed; its logs go to a directory.
    ///
    /// # Errors
    /// [`Setback::Skipped`] if not.
    pub fn find(
        program: Program,
        cable: &Cable,
        directory: &Path,
        message_bytes: u64,
    ) -> Result<Self, Setback> {
        Ok(Self {
            program,
            path: process::find(program.name(), "perftest")?,
            cable: cable.clone(),
            directory: directory.to_owned(),
            message_bytes,
            depth: DEPTHS[0],
        })
    }

    /// Tries depths, and keeps the fastest. `iterations` is how many messages each attempt takes.
    ///
    /// # Errors
    /// [`Kind::Io`] if it fails.
    pub fn tune(&mut self, iterations: u64) -> Result<()> {
        let mut best = (self.depth, 0.0);
        for depth in DEPTHS {
            self.depth = depth;
            let score = self.run(iterations.max(depth as u64))?;
            if score > best.1 {
                best = (depth, score);
            }
        }
        self.depth = best.0;
        Ok(())
    }

    /// Sends so many messages. Returns bytes a second, or the median of the times of one way in
    /// microseconds.
    ///
    /// # Errors
    /// [`Kind::Io`] if it fails.
    pub fn run(&self, iterations: u64) -> Result<f64> {
        let port = process::free_address()?.port();
        let server = self.command(&self.cable.client, port, iterations);
        let log = self.directory.join("perftest.log");
        // At whose end it runs, there its processor is.
        let mut server = on_core(Some(CLIENT_CORE), || {
            Running::start(&mut process::command(&self.path, server), &log, STOP_LIMIT)
        })?;
        // Connecting to see whether it is there would be taken for a client.
        server.wait_until(READY_LIMIT, || process::is_listened_at(port))?;
        let mut client = self.command(&self.cable.node, port, iterations);
        client.push("127.0.0.1".to_owned());
        let output =
            on_core(Some(NODE_CORE), || process::run(&mut process::command(&self.path, client)))?;
        self.parse(&output)
    }

    /// As whom the client pushes; the server listens at every address.
    fn command(&self, end: &End, port: u16, iterations: u64) -> Vec<String> {
        let mut words = vec![
            format!("--ib-dev={}", end.device),
            format!("--ib-port={}", end.port),
            format!("--gid-index={}", end.gid_index),
            format!("--size={}", self.message_bytes),
            format!("--iters={iterations}"),
            format!("--port={port}"),
            format!("--qp-timeout={TIMEOUT}"),
            "--CPU-freq".to_owned(),
        ];
        if self.program.is_bandwidth() {
            words.push(format!("--tx-depth={}", self.depth));
            words.push(format!("--cq-mod={}", (self.depth / 2).clamp(1, 16)));
        }
        words
    }

    /// Finds the line of numbers, which begins with the size.
    fn parse(&self, output: &str) -> Result<f64> {
        let line = output
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words.first() == Some(&self.message_bytes.to_string().as_str()));
        // Of bandwidths: bytes, iterations, peak, average in MiB/s. Of times: bytes, iterations,
        // least, most, typical (which is the median) in microseconds.
        let (at, scale) = if self.program.is_bandwidth() { (3, 1_048_576.0) } else { (4, 1.0) };
        let number = line.and_then(|words| words.get(at)?.parse::<f64>().ok());
        match number {
            Some(number) if number > 0.0 => Ok(number * scale),
            _ => Err(self.unexpected(output)),
        }
    }

    fn unexpected(&self, output: &str) -> Error {
        let name = self.program.name();
        Kind::Corrupt.error(format!("{name} printed no result: {}", output.trim()))
    }
}

impl std::fmt::Display for Perftest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.program.name())?;
        if self.program.is_bandwidth() {
            write!(f, " depth {}", self.depth)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn perftest(program: Program, message_bytes: u64) -> Perftest {
        let end = |device: &str| End {
            device: device.to_owned(),
            port: 1,
            gid_index: 1,
            address: Ipv4Addr::LOCALHOST.into(),
        };
        let cable = Cable { node: end("rxe0"), client: end("rxe1") };
        let (path, directory) = (PathBuf::new(), PathBuf::new());
        Perftest { program, path, cable, directory, message_bytes, depth: 8 }
    }

    #[test]
    fn captured_output_is_read() {
        // What perftest 4.5 prints, without its table of settings.
        let bandwidth = "\
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 1048576    51               0.00               16.97  \t\t   0.000017
---------------------------------------------------------------------------------------";
        let latency = "\
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]
 4096    3000          143.30         8816.56      249.48   \t       892.17      \t1303.68";
        let write = perftest(Program::WriteBandwidth, 1 << 20);
        assert_eq!(write.parse(bandwidth).expect("as printed"), 16.97 * 1_048_576.0);
        let times = perftest(Program::WriteLatency, 4096);
        assert_eq!(times.parse(latency).expect("as printed"), 249.48);
        assert_eq!(times.parse(bandwidth).expect_err("of another size").kind(), Kind::Corrupt);
    }

    #[test]
    fn depth_is_of_bandwidths_only() {
        for (program, wanted) in [(Program::ReadBandwidth, true), (Program::SendLatency, false)] {
            let test = perftest(program, 4096);
            let words = test.command(&test.cable.node, 7, 100);
            assert_eq!(words.contains(&"--tx-depth=8".to_owned()), wanted);
            assert!(words.contains(&"--ib-dev=rxe0".to_owned()));
        }
    }
}
