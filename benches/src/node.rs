//! A real node, in a process of its own.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::{Client, Endpoint, Options};
use extent::{Error, Kind, Result};
use tempfile::TempDir;

use crate::process::{self, Running};
use crate::setup::{Setup, make_directory};
use crate::{clock, files};

const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// What the tier's tables and half-filled slabs may take beside the data.
const TIER_SLACK_BYTES: u64 = 1 << 30;

/// What a node is made of.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Silos, by name: directories.
    pub silos: Vec<(String, PathBuf)>,
    /// Bytes of data that the tier must hold.
    pub data_bytes: u64,
    /// Bytes of an extent; the node's default if `None`.
    pub extent_bytes: Option<u64>,
    /// Shards; the node's default if `None`.
    pub shards: Option<usize>,
    /// Memory for checksums, as the configuration says it; the node's default if `None`.
    pub checksum_memory: Option<String>,
    /// What the tier is on; a file of its own if `None`.
    pub device: Option<Backing>,
    /// An address of an RDMA device to listen at; no RDMA if `None`.
    pub rdma: Option<SocketAddr>,
    /// How long an idle shard spins, in microseconds; as it sees fit if `None`.
    pub spin_us: Option<u64>,
}

/// What a tier is on, other than a file beside the node's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backing {
    /// A block device, by the driver that suits it.
    Block(PathBuf),
    /// A file in memory of so many bytes, which the node makes, read where it lies.
    Memory(PathBuf, u64),
}

/// Where a node keeps its state, whether it runs or not.
pub struct Place {
    binary: PathBuf,
    directory: PathBuf,
    configuration: PathBuf,
    control: SocketAddr,
    data: SocketAddr,
    /// Sockets' paths must be short.
    sockets: TempDir,
}

/// A node that runs, until this is dropped.
pub struct Node {
    place: Arc<Place>,
    running: Running,
    /// From starting the program to its being ready.
    pub started_in: Duration,
}

impl Place {
    /// Writes a configuration.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if there is no binary; [`Kind::Io`].
    pub fn new(setup: &Setup, plan: &Plan) -> Result<Arc<Self>> {
        let Some(binary) = setup.forebay.clone() else {
            return Err(Kind::Invalid.error("only rivals run, and this needs the node"));
        };
        let directory = setup.directory.join("node");
        make_directory(&directory)?;
        let sockets = tempfile::tempdir().map_err(|e| Error::io("making a directory", e))?;
        let place = Self {
            binary,
            configuration: directory.join("forebay.toml"),
            directory,
            control: process::free_address()?,
            data: process::free_address()?,
            sockets,
        };
        place.configure(plan)?;
        Ok(Arc::new(place))
    }

    /// Writes another configuration, for the next start.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn configure(&self, plan: &Plan) -> Result<()> {
        fs::write(&self.configuration, self.text(plan))
            .map_err(|e| Error::io("writing the node's configuration", e))
    }

    fn text(&self, plan: &Plan) -> String {
        let mut text = String::new();
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let mut line = |line: std::fmt::Arguments<'_>| {
            writeln!(text, "{line}").expect("a string grows");
        };
        line(format_args!("[node]"));
        line(format_args!("state_dir = {}", quoted(&self.directory)));
        line(format_args!("socket = {}", quoted(&self.socket())));
        line(format_args!("listen = \"{}\"", self.data));
        line(format_args!("control = \"{}\"", self.control));
        line(format_args!("metrics = \"off\""));
        if let Some(spin_us) = plan.spin_us {
            line(format_args!("spin_us = {spin_us}"));
        }
        if plan.rdma.is_some() {
            // Its address is of no loopback device.
            line(format_args!("insecure = true"));
        }
        if let Some(shards) = plan.shards {
            line(format_args!("shards = {shards}"));
        }
        if let Some(address) = plan.rdma {
            line(format_args!("[rdma]\nlisten = [\"{address}\"]"));
            // perftest and nvmet ask nobody for proofs either.
            line(format_args!("[sessions]\nproof = \"optional\""));
        }
        line(format_args!("[tier]"));
        if let Some(bytes) = plan.extent_bytes {
            line(format_args!("extent_bytes = {bytes}"));
        }
        if let Some(memory) = &plan.checksum_memory {
            line(format_args!("checksum_memory = {memory:?}"));
        }
        match &plan.device {
            Some(Backing::Block(device)) => {
                line(format_args!("[[device]]\npath = {}", quoted(device)));
            }
            Some(Backing::Memory(file, bytes)) => {
                let file = quoted(file);
                line(format_args!(
                    "[[device]]\npath = {file}\nsize = {bytes}\ndriver = \"memory\""
                ));
            }
            None => {
                // A fifth more than the data: sizes of slots are powers of two.
                let bytes = (plan.data_bytes + plan.data_bytes / 5 + TIER_SLACK_BYTES) >> 20 << 20;
                let tier = quoted(&self.directory.join("tier.img"));
                line(format_args!("[[device]]\npath = {tier}\nsize = {bytes}"));
            }
        }
        for (name, root) in &plan.silos {
            line(format_args!("[silo.{name}]\nkind = \"directory\"\npath = {}", quoted(root)));
        }
        text
    }

    /// The node's UNIX socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.sockets.path().join("data.sock")
    }

    /// Starts the node, and waits until it says that it is ready.
    ///
    /// # Errors
    /// [`Kind::Io`] with the end of its log if it does not come up.
    pub fn start(self: &Arc<Self>) -> Result<Node> {
        let notify = self.sockets.path().join("notify");
        // What an earlier start left.
        let _ = fs::remove_file(&notify);
        let lost = |e| Error::io("listening for the node's readiness", e);
        let notified = UnixDatagram::bind(&notify).map_err(lost)?;
        notified.set_nonblocking(true).map_err(lost)?;
        let mut command = process::command(&self.binary, ["serve", "--config"]);
        command.arg(&self.configuration);
        // As a service manager is told, by sd_notify(3).
        command.env("NOTIFY_SOCKET", &notify).env_remove("FOREBAY_CONTROL");
        let begin = clock::now();
        let log = self.directory.join("node.log");
        let mut running = Running::start(&mut command, &log, STOP_LIMIT)?;
        running.wait_until(START_LIMIT, || {
            let mut text = [0; 512];
            let received = notified.recv(&mut text).unwrap_or(0);
            text[..received].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
        })?;
        Ok(Node { place: Arc::clone(self), running, started_in: begin.elapsed() })
    }

    /// Drops the tier's and the silos' pages from the page cache.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn make_cold(&self) -> Result<()> {
        files::make_cold(&self.directory)
    }
}

impl Node {
    /// Runs a command of the tool against this node, and returns what it printed.
    ///
    /// # Errors
    /// [`Kind::Io`] with what it said if it fails.
    pub fn tool(&self, arguments: &[&str]) -> Result<String> {
        let mut command = process::command(&self.place.binary, arguments);
        command.arg("--control").arg(self.place.control.to_string());
        process::run(&mut command)
    }

    /// Brings everything whose name begins with a prefix onto the node.
    ///
    /// # Errors
    /// As [`Node::tool`].
    pub fn promote(&self, prefix: &str) -> Result<()> {
        self.tool(&["promote", "--prefix", prefix, "--durable"]).map(drop)
    }

    /// Lets everything whose name begins with a prefix go.
    ///
    /// # Errors
    /// As [`Node::tool`].
    pub fn release(&self, prefix: &str) -> Result<()> {
        self.tool(&["release", "--prefix", prefix]).map(drop)
    }

    /// Through shared memory.
    #[must_use]
    pub fn shared_memory(&self) -> Endpoint {
        Endpoint::Unix(self.place.socket())
    }

    /// Over TCP.
    #[must_use]
    pub fn tcp(&self) -> Endpoint {
        Endpoint::Tcp(self.place.data.to_string())
    }

    /// A client of this node.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn client(&self, endpoint: &Endpoint) -> Result<Client> {
        Client::connect(endpoint, &Options::default())
    }

    /// Processor seconds used so far.
    ///
    /// # Errors
    /// [`Kind::Io`] if it is gone.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.running.cpu_seconds()
    }

    /// Bytes that clients have read so far.
    ///
    /// # Errors
    /// As [`Node::tool`]; [`Kind::Corrupt`] if the answer is not understood.
    pub fn bytes_read(&self) -> Result<u64> {
        let text = self.tool(&["--json", "status"])?;
        let status: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Kind::Corrupt.error("reading the node's status").caused_by(e))?;
        status["read_bytes"]
            .as_u64()
            .ok_or_else(|| Kind::Corrupt.error(format!("no read_bytes in the status: {text}")))
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// [`Kind::Io`] if it fails, or has to be killed.
    pub fn stop(self) -> Result<()> {
        self.running.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_name_everything_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let setup = Setup {
            directory: directory.path().to_owned(),
            forebay: Some("/bin/false".into()),
            seconds: 1,
            size_bytes: 1,
            tree: None,
            pairs: 5,
            depth: None,
            shards: None,
        };
        let plan = Plan {
            silos: vec![("data".into(), "/srv/a b".into()), ("t1".into(), "/srv/c".into())],
            data_bytes: 5 << 30,
            extent_bytes: Some(65536),
            shards: Some(2),
            checksum_memory: Some("all".into()),
            ..Plan::default()
        };
        let place = Place::new(&setup, &plan).expect("written");
        let text = fs::read_to_string(&place.configuration).expect("there");
        for wanted in [
            "shards = 2",
            "[tier]\nextent_bytes = 65536\nchecksum_memory = \"all\"",
            "size = 7516192768",
            "[silo.data]\nkind = \"directory\"\npath = \"/srv/a b\"",
            "[silo.t1]",
        ] {
            assert_eq!(text.matches(wanted).count(), 1, "{wanted} in {text}");
        }
        assert!(!text.contains("[rdma]") && !text.contains("insecure"), "{text}");
        let rdma = Some("10.0.0.1:7".parse().expect("an address"));
        let device = Some(Backing::Block("/dev/ram0".into()));
        let memory = Some(Backing::Memory("/dev/shm/t".into(), 9));
        let text = place.text(&Plan { device: memory, ..plan.clone() });
        let wanted = "path = \"/dev/shm/t\"\nsize = 9\ndriver = \"memory\"\n[silo";
        assert!(text.contains(wanted), "{text}");
        let text = place.text(&Plan { device, rdma, spin_us: Some(9), ..plan });
        for wanted in [
            "insecure = true",
            "spin_us = 9",
            "[rdma]\nlisten = [\"10.0.0.1:7\"]",
            "[[device]]\npath = \"/dev/ram0\"\n[silo",
        ] {
            assert_eq!(text.matches(wanted).count(), 1, "{wanted} in {text}");
        }
        let error = place.start().err().expect("it ends at once");
        assert!(error.to_string().contains("ended with"), "{error}");
    }
}
