//! Reads and writes over RDMA against what the devices themselves, and the kernel, make of them.

mod bandwidth;
mod instructions;
mod latency;
mod scale;
mod small;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use client::load::{self, Direction, Load, Report, Stop};
use client::{Client, Endpoint, Options};
use extent::{Error, FileName, Kind, Result};
use rdma::VerbsOptions;

use super::Case;
use crate::cable::{CLIENT_CORE, Cable, NODE_CORE};
use crate::files::{self, Random};
use crate::node::{Backing, Node, Place, Plan};
use crate::pairs::Terms;
use crate::ram_disk::RamDisks;
use crate::setup::{Setup, make_directory};
use crate::stream::on_core;
use crate::verdict::Setback;

pub(super) const READ: Case = bandwidth::READ;
pub(super) const READ_VERIFIED: Case = bandwidth::READ_VERIFIED;
pub(super) const WRITE: Case = bandwidth::WRITE;
pub(super) const WRITE_VERIFIED: Case = bandwidth::WRITE_VERIFIED;
pub(super) const SMALL: Case = small::CASE;
pub(super) const SMALL_VERIFIED: Case = small::VERIFIED;
pub(super) const LATENCY: Case = latency::CASE;
pub(super) const LATENCY_BRD: Case = latency::BRD;
pub(super) const INSTRUCTIONS: Case = instructions::CASE;
pub(super) const INSTRUCTIONS_BESIDE: Case = instructions::BESIDE_CHECKSUMS;
pub(super) const SCALE: Case = scale::CASE;

/// What is read; memory is as fast at its end as at its beginning, so more would tell no more.
const MOST_BYTES: u64 = 64 << 20;
const DISK_BYTES: u64 = 2 << 30;
/// A file in memory is there as a whole.
const FILE_BYTES: u64 = 512 << 20;
const WARMUP: Duration = Duration::from_secs(1);
/// A guest's first connection asks for addresses for seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than a round trip, and short enough to leave a processor to others that wait for it.
const SPIN_US: u64 = 2_000;
/// Blocks that are compared after each run, beside the whole file before the first.
const SAMPLES: u64 = 8;
const NAME: &str = "data/data.bin";
const WRITTEN: &str = "data/written.bin";

/// One end's load.
#[derive(Clone, Copy, Debug)]
struct Shape {
    block_bytes: u64,
    depth: usize,
    sessions: usize,
    verify: bool,
    direction: Direction,
}

/// How a node is run.
#[derive(Clone, Copy, Default)]
struct Conduct {
    /// Block devices in memory to make, of which the first is the node's.
    disks: usize,
    /// Whether both sides wait for each other without sleeping, as rivals do that measure latency.
    spins: bool,
    /// Whether the node has a file in memory, which it reads where it lies, instead of a block device.
    memory: bool,
}

/// A node's file in memory, removed at the end.
struct MemoryFile(PathBuf);

impl MemoryFile {
    /// Its name; the node makes it.
    fn new() -> Self {
        let path = PathBuf::from(format!("/dev/shm/forebay-bench-{}.img", std::process::id()));
        // What another run under the same number left.
        let _ = fs::remove_file(&path);
        Self(path)
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A node in memory, reached over a cable.
struct Ours {
    node: Node,
    endpoint: Endpoint,
    options: Options,
    content: Vec<u8>,
    seconds: u64,
    random: Random,
    // Behind the node, which uses them.
    disks: Option<RamDisks>,
    _file: Option<MemoryFile>,
}

impl Ours {
    /// Starts a node on a block device or file in memory, and brings a file onto it, all of which is compared.
    fn prepare(case: &Terms, setup: &Setup, conduct: Conduct) -> Result<(Self, Cable), Setback> {
        if setup.forebay.is_none() {
            return Err(Setback::Skipped("its rival is run beside a node only".to_owned()));
        }
        let Some(cable) = Cable::find() else { return Err(Setback::Skipped(needs_lab(case))) };
        let (disks, file, device) = if conduct.memory {
            let file = MemoryFile::new();
            let device = Backing::Memory(file.0.clone(), FILE_BYTES);
            (None, Some(file), device)
        } else {
            let disks = RamDisks::make(conduct.disks.max(1), DISK_BYTES)?;
            let device = Backing::Block(disks.path(0));
            (Some(disks), None, device)
        };
        let silo = setup.silo();
        make_directory(&silo)?;
        let path = silo.join(Setup::DATA_KEY);
        files::write_random(&path, setup.size_bytes.min(MOST_BYTES), 7)?;
        let content =
            fs::read(&path).map_err(|e| Error::io("reading the file to compare with", e))?;
        let port = crate::process::free_address()?.port();
        let address = std::net::SocketAddr::new(cable.node.address, port);
        let plan = Plan {
            silos: vec![("data".to_owned(), silo)],
            device: Some(device),
            rdma: Some(address),
            shards: setup.shards,
            spin_us: conduct.spins.then_some(SPIN_US),
            ..Plan::default()
        };
        let place = Place::new(setup, &plan)?;
        let node = on_core(Some(NODE_CORE), || place.start())?;
        node.promote(NAME)?;
        let options = Options {
            spin: Duration::from_micros(if conduct.spins { SPIN_US } else { 0 }),
            connect_timeout: CONNECT_TIMEOUT,
            rdma: VerbsOptions { source: Some(cable.client.address), ..VerbsOptions::default() },
            ..Options::default()
        };
        let endpoint = Endpoint::Rdma(address.to_string());
        let random = Random::new(3);
        let ours = Self {
            node,
            endpoint,
            options,
            content,
            seconds: setup.seconds,
            random,
            disks,
            _file: file,
        };
        ours.compare_all(NAME)?;
        Ok((ours, cable))
    }

    /// Those of a node that was asked to have some.
    fn disks(&self) -> &RamDisks {
        self.disks.as_ref().expect("a node on a block device")
    }

    /// One run, after which some blocks are compared.
    fn run(&mut self, shape: Shape) -> Result<Report> {
        self.run_over(&self.endpoint.clone(), shape)
    }

    fn run_over(&mut self, endpoint: &Endpoint, shape: Shape) -> Result<Report> {
        let writes = shape.direction == Direction::Write;
        let files: Result<Vec<FileName>> = match writes {
            false => vec![NAME.parse()].into_iter().collect(),
            true => (0..shape.sessions).map(|n| format!("{WRITTEN}.{n}").parse()).collect(),
        };
        let mut options = self.options.clone();
        options.verify = shape.verify;
        options.credits = u16::try_from(shape.depth).unwrap_or(u16::MAX).max(options.credits);
        let load = Load {
            files: files?,
            block_bytes: shape.block_bytes,
            depth: shape.depth,
            sessions: shape.sessions,
            // Whoever has so many has processors for them, which there are not here.
            threads: 1,
            direction: shape.direction,
            stop: Stop::After(Duration::from_secs(self.seconds)),
            warmup: WARMUP,
            working_set_bytes: writes.then_some(self.content.len() as u64),
            options,
            ..Load::default()
        };
        let report = on_core(Some(CLIENT_CORE), || load::run(endpoint, &load))?;
        check(&report)?;
        if writes {
            self.write_and_compare(shape.block_bytes)?;
        } else {
            self.compare_some(shape.block_bytes)?;
        }
        Ok(report)
    }

    fn client(&self) -> Result<Client> {
        Client::connect(&self.endpoint, &self.options)
    }

    fn compare_all(&self, name: &str) -> Result<()> {
        let file = self.client()?.open(&name.parse()?)?;
        let mut read = vec![0; self.content.len()];
        file.read_into(0, &mut read)?;
        differs(&read, &self.content, 0)
    }

    fn compare_some(&mut self, block_bytes: u64) -> Result<()> {
        let file = self.client()?.open(&NAME.parse()?)?;
        let block = usize::try_from(block_bytes).unwrap_or(usize::MAX).min(self.content.len());
        let mut read = vec![0; block];
        for _ in 0..SAMPLES {
            let offset = self.random.below((self.content.len() - block) as u64 + 1);
            file.read_into(offset, &mut read)?;
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            differs(&read, &self.content[from..from + block], offset)?;
        }
        Ok(())
    }

    /// A generation of the same bytes as the file's, written in the blocks of the load, read back whole.
    fn write_and_compare(&self, block_bytes: u64) -> Result<()> {
        let client = self.client()?;
        let name = format!("{WRITTEN}.0").parse()?;
        let writer = client.create(&name, self.content.len() as u64)?;
        let block = usize::try_from(block_bytes).unwrap_or(usize::MAX);
        for (bytes, number) in self.content.chunks(block).zip(0..) {
            writer.write_at(number * block_bytes, bytes)?;
        }
        drop(writer.commit(self.content.len() as u64)?);
        self.compare_all(&format!("{WRITTEN}.0"))
    }
}

fn check(report: &Report) -> Result<()> {
    if let Some(error) = &report.first_error {
        let errors = report.errors;
        return Err(Kind::Io.error(format!("{errors} operations failed, the first: {error}")));
    }
    let from_tier = report.served.get("tier").copied().unwrap_or(0);
    if report.direction == Direction::Read.name() && from_tier != report.operations {
        return Err(Kind::NotResident.error(format!(
            "only {from_tier} of {} reads came from the tier: {:?}",
            report.operations, report.served
        )));
    }
    Ok(())
}

fn differs(read: &[u8], wanted: &[u8], offset: u64) -> Result<()> {
    match read.iter().zip(wanted).position(|(read, wanted)| read != wanted) {
        None if read.len() == wanted.len() => Ok(()),
        at => Err(Kind::Corrupt.error(format!(
            "what was read at {offset} is not what was written: it differs from byte {at:?} on"
        ))),
    }
}

/// What to say where there are no two devices.
fn needs_lab(case: &Terms) -> String {
    format!(
        "needs two RDMA devices on one cable, with IPv4 addresses of one network: run it in the lab, \
         ci/lab/rdma {}",
        case.case
    )
}
