//! A configuration with everything decided and checked.

use std::env;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use extent::{FileName, Kind, Result};
use nvme_tier::{Copies, Discard};
use rdma::{PeerPolicy, VerbsOptions};
use silo::SiloConfig;

use super::devices::{DeviceSpec, devices};
use super::memory::checksum_memory;
use super::proofs::ProofPolicy;
use super::{
    Config, DEFAULT_CONTROL, DEFAULT_LISTEN, DEFAULT_METRICS, Peers, RdmaSection, TierSection,
};
use crate::cli::{ServeArgs, control_of_environment};
use crate::units::{self, Bytes};

const MAX_SHARDS: usize = 256;
const DEFAULT_SCRUB_BYTES_PER_S: u64 = 64 << 20;
const MIN_SCRUB_BYTES_PER_S: u64 = 64 << 10;
const DEFAULT_SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// What the kernel takes for a socket's path, with its end.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// What a node is started with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) state_dir: PathBuf,
    pub(crate) shards: usize,
    pub(crate) listen: SocketAddr,
    pub(crate) rdma: Option<RdmaSettings>,
    pub(crate) proofs: ProofPolicy,
    pub(crate) socket: PathBuf,
    pub(crate) peers: PeerPolicy,
    pub(crate) control: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) spin_us: Option<u64>,
    pub(crate) buffers_bytes: u64,
    pub(crate) credits: Option<u16>,
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) tier: TierSettings,
    pub(crate) silos: Vec<(String, SiloConfig)>,
}

/// Where RDMA clients come, and how their connections behave.
#[derive(Clone, Debug)]
pub(crate) struct RdmaSettings {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) options: VerbsOptions,
}

/// How the tier is formatted and kept.
#[derive(Clone, Debug)]
pub(crate) struct TierSettings {
    pub(crate) high_watermark: f64,
    pub(crate) low_watermark: f64,
    pub(crate) scrub_bytes_per_s: u64,
    /// How long after the end of a scrub the next one begins by itself.
    pub(crate) scrub_every: Option<Duration>,
    /// `u64::MAX` for all.
    pub(crate) checksum_memory_bytes: u64,
    pub(crate) extent_bytes: u64,
    pub(crate) checksum_block_bytes: u64,
    pub(crate) slab_bytes: Option<u64>,
    pub(crate) min_class_bytes: u64,
    /// What devices are told of freed space.
    pub(crate) discard: Discard,
    /// On how many devices what is written stands until its silo has it.
    pub(crate) dirty_copies: Copies,
}

impl Settings {
    /// Decides and checks everything that can be checked without touching devices.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the key to change; [`Kind::Denied`] for an address beyond this
    /// machine without `insecure`; [`Kind::NoSpace`] if there is no room for the default tier.
    pub(crate) fn resolve(config: Config, args: &ServeArgs, control: Option<&str>) -> Result<Self> {
        let Config { node, device, tier, rdma, sessions, silo } = config;
        let state_dir = args.state_dir.clone().or(node.state_dir).unwrap_or_else(default_state_dir);
        let insecure = args.insecure || node.insecure;
        // What the environment says is for tools, which may be told of another node.
        let control = control.map(str::to_owned).or(node.control).or_else(control_of_environment);
        let control = control.unwrap_or_else(|| DEFAULT_CONTROL.to_owned());
        let listen = args.listen.clone().or(node.listen);
        let listen = listen.unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
        let metrics = args.metrics.clone().or(node.metrics);
        let metrics = metrics.unwrap_or_else(|| DEFAULT_METRICS.to_owned());
        let metrics = match metrics.as_str() {
            "" | "off" => None,
            text => Some(address("[node] metrics", text, METRICS_EXPOSED, insecure)?),
        };
        let devices = devices(device, &state_dir, args.tier_size, &args.without)?;
        let tier = TierSettings::resolve(&tier)?;
        if tier.dirty_copies == Copies::Two && devices.len() < 2 {
            return Err(Kind::Invalid.error(
                "[tier] dirty_copies = 2 keeps what is written on two devices, and there is one: add a \
                 [[device]] to a new tier, or leave it at 1",
            ));
        }
        let listen = address("[node] listen", &listen, DATA_EXPOSED, insecure)?;
        let rdma = rdma_settings(&rdma, &args.rdma, insecure)?;
        let data = rdma.iter().flat_map(|rdma| &rdma.listen).chain([&listen]);
        let beyond_this_machine = data.into_iter().any(|address| !address.ip().is_loopback());
        Ok(Self {
            proofs: ProofPolicy::resolve(sessions.proof, beyond_this_machine),
            shards: shards(args.shards.or(node.shards))?,
            listen,
            rdma,
            control: address("[node] control", &control, CONTROL_EXPOSED, insecure)?,
            metrics,
            socket: socket(node.socket, &state_dir)?,
            peers: peers(node.peers)?,
            spin_us: node.spin_us,
            buffers_bytes: buffers(node.buffers_bytes)?,
            credits: credits(node.credits)?,
            devices,
            tier,
            silos: silos(silo, &args.silos)?,
            state_dir,
        })
    }
}

impl TierSettings {
    fn resolve(section: &TierSection) -> Result<Self> {
        let size = |value: Option<Bytes>, default: u64| value.map_or(default, |bytes| bytes.0);
        let tier = Self {
            high_watermark: section.high_watermark.unwrap_or(0.95),
            low_watermark: section.low_watermark.unwrap_or(0.90),
            scrub_bytes_per_s: scrub_rate(section.scrub_rate)?,
            scrub_every: scrub_every(section.scrub_every.as_deref())?,
            checksum_memory_bytes: checksum_memory(section.checksum_memory.as_ref())?,
            extent_bytes: size(section.extent_bytes, 4 << 20),
            checksum_block_bytes: size(section.checksum_block_bytes, 4096),
            slab_bytes: section.slab_bytes.map(|bytes| bytes.0),
            min_class_bytes: size(section.min_class_bytes, 64 << 10),
            discard: section.discard.into(),
            dirty_copies: copies(section.dirty_copies)?,
        };
        let ordered = 0.0 < tier.low_watermark
            && tier.low_watermark <= tier.high_watermark
            && tier.high_watermark <= 1.0;
        if !ordered {
            return Err(Kind::Invalid.error(format!(
                "[tier] watermarks must be 0 < low <= high <= 1, not {} and {}",
                tier.low_watermark, tier.high_watermark
            )));
        }
        power_of_two("extent_bytes", tier.extent_bytes, 64 << 10, 64 << 20)?;
        power_of_two("checksum_block_bytes", tier.checksum_block_bytes, 4 << 10, 64 << 10)?;
        power_of_two("min_class_bytes", tier.min_class_bytes, 16 << 10, tier.extent_bytes)?;
        if let Some(bytes) = tier.slab_bytes {
            power_of_two("slab_bytes", bytes, 4 * tier.extent_bytes.max(2 << 20), 1 << 40)?;
        }
        Ok(tier)
    }
}

fn copies(asked: Option<u32>) -> Result<Copies> {
    match asked {
        None | Some(1) => Ok(Copies::One),
        Some(2) => Ok(Copies::Two),
        Some(other) => Err(Kind::Invalid.error(format!(
            "[tier] dirty_copies: files that are written here are kept once or twice, not {other} times"
        ))),
    }
}

fn scrub_rate(asked: Option<Bytes>) -> Result<u64> {
    let bytes = asked.map_or(DEFAULT_SCRUB_BYTES_PER_S, |bytes| bytes.0);
    if bytes < MIN_SCRUB_BYTES_PER_S {
        return Err(Kind::Invalid.error(format!(
            "[tier] scrub_rate: {} a second is too little to get anywhere; give it {} or more, or \
             turn scrubs off with scrub_every = \"off\"",
            units::bytes(bytes),
            units::bytes(MIN_SCRUB_BYTES_PER_S)
        )));
    }
    Ok(bytes)
}

fn scrub_every(asked: Option<&str>) -> Result<Option<Duration>> {
    match asked {
        None => Ok(Some(DEFAULT_SCRUB_EVERY)),
        Some("off" | "0") => Ok(None),
        Some(text) => {
            let every = units::duration(text).map_err(|e| e.while_doing("[tier] scrub_every"))?;
            Ok(Some(every).filter(|every| !every.is_zero()))
        }
    }
}

fn power_of_two(key: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if value.is_power_of_two() && (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Kind::Invalid.error(format!(
        "[tier] {key} must be a power of two from {} to {}, not {value}",
        units::bytes(least),
        units::bytes(most)
    )))
}

/// What it means that other machines reach an address.
const DATA_EXPOSED: &str = "what passes there is in clear text: whoever sees the network can read it, and \
     take over a session that has shown its proof";
const CONTROL_EXPOSED: &str = "nobody is authenticated there: whoever reaches it can have files demoted, and \
     get proofs, with which every file can be read and replaced";
const METRICS_EXPOSED: &str =
    "nobody is authenticated there: whoever reaches it can read the node's metrics";

/// An address to listen on. Beyond this machine, where what is `exposed` matters, only if told so.
fn address(key: &str, text: &str, exposed: &str, insecure: bool) -> Result<SocketAddr> {
    let bad =
        || Kind::Invalid.error(format!("{key}: {text:?} is not an address: write 127.0.0.1:7440"));
    let address = match text.parse() {
        Ok(address) => address,
        Err(_) => {
            let mut found = text.to_socket_addrs().map_err(|e| bad().caused_by(e))?;
            found.next().ok_or_else(bad)?
        }
    };
    if !address.ip().is_loopback() && !insecure {
        return Err(Kind::Denied.error(format!(
            "{key}: {address} is reachable from other machines, and {exposed}. Listen on \
             127.0.0.1, or say --insecure if the network is yours alone"
        )));
    }
    Ok(address)
}

/// RDMA, if there is an address for it.
fn rdma_settings(
    section: &RdmaSection,
    told: &[String],
    insecure: bool,
) -> Result<Option<RdmaSettings>> {
    let wanted = if told.is_empty() { &section.listen } else { told };
    if wanted.is_empty() {
        return Ok(None);
    }
    let defaults = VerbsOptions::default();
    let acknowledge_timeout = section.acknowledge_timeout.unwrap_or(defaults.acknowledge_timeout);
    if !(1..=31).contains(&acknowledge_timeout) {
        return Err(Kind::Invalid.error(format!(
            "[rdma] acknowledge_timeout: {acknowledge_timeout} is not from 1 to 31; 18 is about a second"
        )));
    }
    let listen = wanted
        .iter()
        .map(|text| address("[rdma] listen", text, DATA_EXPOSED, insecure))
        .collect::<Result<_>>()?;
    Ok(Some(RdmaSettings { listen, options: VerbsOptions { acknowledge_timeout, ..defaults } }))
}

fn shards(asked: Option<usize>) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match asked {
        None | Some(0) => Ok((cores / 2).clamp(1, MAX_SHARDS)),
        Some(count) if count <= MAX_SHARDS => Ok(count),
        Some(count) => Err(Kind::Invalid.error(format!(
            "[node] shards: {count} is more than {MAX_SHARDS}; there are {cores} cores"
        ))),
    }
}

fn buffers(asked: Option<Bytes>) -> Result<u64> {
    let bytes = asked.map_or(256 << 20, |bytes| bytes.0);
    if bytes < 32 << 20 {
        return Err(Kind::Invalid.error(format!(
            "[node] buffers_bytes: {} is too little to move extents with; give it 32 MiB or more",
            units::bytes(bytes)
        )));
    }
    Ok(bytes)
}

fn credits(asked: Option<u16>) -> Result<Option<u16>> {
    if asked == Some(0) {
        return Err(Kind::Invalid.error("[node] credits: a session needs at least 1"));
    }
    Ok(asked)
}

fn socket(asked: Option<PathBuf>, state_dir: &Path) -> Result<PathBuf> {
    let path = asked.unwrap_or_else(|| default_socket(state_dir));
    let length = path.as_os_str().len();
    if length == 0 {
        return Err(Kind::Invalid.error(
            "[node] socket is empty: leave it out for one in the state directory, or give a path",
        ));
    }
    if length > MAX_SOCKET_PATH_BYTES {
        return Err(Kind::Invalid.error(format!(
            "[node] socket: {} has {length} bytes, and the kernel takes {MAX_SOCKET_PATH_BYTES}: \
             choose a shorter state_dir or socket",
            path.display()
        )));
    }
    Ok(path)
}

fn peers(asked: Option<Peers>) -> Result<PeerPolicy> {
    match asked {
        None => Ok(PeerPolicy::default()),
        Some(Peers::Users(users)) => Ok(PeerPolicy::Users(users)),
        Some(Peers::Word(word)) => match word.as_str() {
            "same-user" => Ok(PeerPolicy::SameUser),
            "anyone" => Ok(PeerPolicy::Anyone),
            _ => Err(Kind::Invalid.error(format!(
                "[node] peers: {word:?} is neither \"same-user\" nor \"anyone\", nor a list of \
                 user numbers such as [1000, 1001]"
            ))),
        },
    }
}

fn silos(
    configured: std::collections::BTreeMap<String, SiloConfig>,
    directories: &[(String, PathBuf)],
) -> Result<Vec<(String, SiloConfig)>> {
    let mut silos: Vec<_> = configured.into_iter().collect();
    for (name, path) in directories {
        if silos.iter().any(|(other, _)| other == name) {
            return Err(Kind::Invalid.error(format!("silo {name} is given twice")));
        }
        silos.push((name.clone(), SiloConfig::directory(path)));
    }
    for (name, _) in &silos {
        FileName::new(name.as_str(), "key").map_err(|e| e.while_doing("[silo]"))?;
    }
    Ok(silos)
}

/// Where a node keeps its state unless told: the system's place for root, the user's for others.
pub(crate) fn default_state_dir() -> PathBuf {
    let from = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    // systemd's StateDirectory= says where the unit's state belongs.
    if let Some(directory) = from("STATE_DIRECTORY") {
        return directory;
    }
    if let Some(state) = from("XDG_STATE_HOME") {
        return state.join("forebay");
    }
    if crate::system::is_root() {
        return PathBuf::from("/var/lib/forebay");
    }
    from("HOME")
        .map_or_else(|| PathBuf::from("/var/lib/forebay"), |home| home.join(".local/state/forebay"))
}

/// The socket through which clients on this machine reach shared memory.
pub(crate) fn default_socket(state_dir: &Path) -> PathBuf {
    state_dir.join(client::Endpoint::SOCKET_NAME)
}

#[cfg(test)]
mod tests {
    use super::super::devices::{MAX_DEFAULT_TIER_BYTES, MIN_TIER_BYTES};
    use super::*;

    fn resolve(text: &str, args: &ServeArgs) -> Result<Settings> {
        let config = toml::from_str(text).expect("a configuration");
        Settings::resolve(config, args, None)
    }

    fn args() -> (tempfile::TempDir, ServeArgs) {
        let directory = tempfile::tempdir().expect("a directory");
        let args =
            ServeArgs { state_dir: Some(directory.path().join("state")), ..ServeArgs::default() };
        (directory, args)
    }

    #[test]
    fn nothing_configured_is_sensible() {
        let (_directory, args) = args();
        let settings = resolve("", &args).expect("sensible");
        let state = args.state_dir.expect("given");
        assert!(settings.listen.ip().is_loopback() && settings.control.ip().is_loopback());
        assert_eq!(settings.socket, state.join(client::Endpoint::SOCKET_NAME));
        assert_eq!(settings.devices.len(), 1);
        assert_eq!(settings.devices[0].path, state.join("tier.img"));
        let bytes = settings.devices[0].create_bytes.expect("to be created");
        assert!((MIN_TIER_BYTES..=MAX_DEFAULT_TIER_BYTES).contains(&bytes));
        assert!(settings.shards >= 1);
    }

    #[test]
    fn beyond_this_machine_only_if_told() {
        let (_directory, mut args) = args();
        let dangers =
            [("listen", "clear text"), ("control", "get proofs"), ("metrics", "read the node's")];
        for (key, danger) in dangers {
            let text = format!("[node]\n{key} = \"0.0.0.0:7000\"");
            let error = resolve(&text, &args).expect_err(key);
            assert_eq!(error.kind(), Kind::Denied);
            assert!(error.to_string().contains(danger), "{error}");
            resolve(&format!("{text}\ninsecure = true"), &args).expect("told in the file");
        }
        args.insecure = true;
        args.listen = Some("0.0.0.0:0".to_owned());
        resolve("", &args).expect("told on the command line");
    }

    #[test]
    fn proofs_are_required_where_other_machines_reach_the_data_unless_told() {
        let (_directory, mut args) = args();
        args.insecure = true;
        let remote = "[node]\nlisten = \"0.0.0.0:7000\"\n";
        let rdma = "[rdma]\nlisten = [\"10.0.0.7:7443\"]\n";
        let control = "[node]\ncontrol = \"0.0.0.0:7000\"\n";
        for (text, policy) in [
            ("", ProofPolicy::Optional),
            (control, ProofPolicy::Optional),
            (remote, ProofPolicy::Required),
            (rdma, ProofPolicy::Required),
        ] {
            assert_eq!(resolve(text, &args).expect("sound").proofs, policy, "{text}");
            for (word, told) in
                [("required", ProofPolicy::Required), ("optional", ProofPolicy::Optional)]
            {
                let text = format!("{text}[sessions]\nproof = {word:?}");
                assert_eq!(resolve(&text, &args).expect("sound").proofs, told, "{text}");
                assert_eq!(told.name(), word);
            }
        }
    }

    #[test]
    fn scrubs_are_weekly_unless_told() {
        let (_directory, args) = args();
        let week = Duration::from_secs(7 * 24 * 3600);
        for (text, every) in [
            ("", Some(week)),
            ("[tier]\nscrub_every = \"12h\"", Some(week / 14)),
            ("[tier]\nscrub_every = \"off\"", None),
            ("[tier]\nscrub_every = \"0\"\ndirty_copies = 1", None),
        ] {
            let tier = resolve(text, &args).expect("sound").tier;
            assert_eq!((tier.scrub_every, tier.scrub_bytes_per_s), (every, 64 << 20), "{text}");
        }
    }

    #[test]
    fn senseless_values_are_refused_by_name() {
        let (directory, args) = args();
        let cases = [
            ("[tier]\nextent_bytes = 5000", "extent_bytes"),
            ("[tier]\nchecksum_block_bytes = \"128KiB\"", "checksum_block_bytes"),
            ("[tier]\nmin_class_bytes = \"8KiB\"", "min_class_bytes"),
            ("[tier]\nslab_bytes = \"1MiB\"", "slab_bytes"),
            ("[tier]\nhigh_watermark = 0.5\nlow_watermark = 0.9", "watermarks"),
            ("[tier]\nhigh_watermark = 1.5", "watermarks"),
            ("[tier]\nscrub_rate = \"1KiB\"", "scrub_rate"),
            ("[tier]\nscrub_every = \"weekly\"", "scrub_every"),
            ("[tier]\ndirty_copies = 2", "there is one"),
            ("[tier]\ndirty_copies = 3", "not 3 times"),
            ("[node]\nshards = 1000", "shards"),
            ("[node]\ncredits = 0", "credits"),
            ("[node]\nbuffers_bytes = \"1MiB\"", "buffers_bytes"),
            ("[node]\nlisten = \"nowhere\"", "listen"),
            ("[rdma]\nlisten = [\"nowhere\"]", "[rdma] listen"),
            ("[rdma]\nlisten = [\"127.0.0.1:1\"]\nacknowledge_timeout = 32", "acknowledge_timeout"),
            ("[node]\npeers = \"friends\"", "peers"),
            ("[[device]]\npath = \"/dev/none-such\"", "/dev/none-such"),
            ("[[device]]\npath = \"/tmp/x.img\"\nsize = \"1MiB\"", "too small"),
            ("[[device]]\npath = \"0000:00:04.0\"\ncommand_timeout = \"0s\"", "command_timeout"),
            ("[[device]]\npath = \"0000:00:04.0\"\nreset_timeout = \"9s\"", "reset_timeout"),
            ("[[device]]\npath = \"0000:00:04.0\"\nready_timeout = \"soon\"", "ready_timeout"),
            ("[[device]]\npath = \"0000:00:04.0\"\nresets_per_minute = 0", "resets_per_minute"),
            ("[[device]]\npath = \"/dev/null\"\ncommand_timeout = \"9s\"", "driver vfio"),
        ];
        for (text, expected) in cases {
            let error = resolve(text, &args).expect_err(text);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        let long = directory.path().join("x".repeat(120));
        let error = resolve("", &ServeArgs { state_dir: Some(long), ..args }).expect_err("long");
        assert!(error.to_string().contains("socket"), "{error}");
    }
}
