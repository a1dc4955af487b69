//! `forebay serve`: a node from its start to its end.

mod check;
mod end;
mod gate;
mod leftovers;
mod media;
mod parts;
mod ready;
mod room;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use control::Control;
use dataplane::{Handle, Node};
use extent::checksum::Choice;
use extent::{Error, Kind, Result};
pub(crate) use media::{create_file, work_pool};
use rdma::{Listener, ListenerOptions, ShmOptions};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::cli::{Global, ServeArgs};
use crate::config::{Config, Settings};
use crate::notify::Notifier;
use crate::output::Output;
use crate::{logs, metrics, notify, system};

/// The control database, in the state directory.
const CONTROL_DATABASE: &str = "control.redb";

/// Runs a node until a signal ends it.
///
/// # Errors
/// If the configuration is not sound, or the node cannot start or stop as it should.
pub(crate) fn run(args: &ServeArgs, global: &Global) -> Result<()> {
    let output = global.output();
    logs::start(global.verbose, if args.check { "warn" } else { "info" }, args.log_json)?;
    choose_checksums();
    let config = args.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let settings = Settings::resolve(config, args, global.control.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting the event loop", e))?;
    if args.check {
        let _inside = runtime.enter();
        return check::run(&settings, output);
    }
    system::raise_open_files();
    let ended = runtime.block_on(serve(&settings, output));
    // What still waits, such as a silo that does not answer, is not waited for.
    runtime.shutdown_background();
    ended
}

fn choose_checksums() {
    let Choice { way, instructions, shifts } = system::choose_checksums();
    tracing::info!(%way, ?instructions, ?shifts, "chose how to compute checksums of 4 KiB");
}

/// A node that serves.
struct Serving {
    node: Node,
    handle: Arc<dyn Handle>,
    listener: Listener,
    control: Arc<Control>,
    control_task: JoinHandle<Result<()>>,
    stop_control: oneshot::Sender<()>,
    leftovers: JoinSet<()>,
}

async fn serve(settings: &Settings, output: Output) -> Result<()> {
    let notifier = Notifier::from_env();
    room::check(settings)?;
    let silos = parts::silos(settings)?;
    make_state_dir(&settings.state_dir)?;
    // Addresses first: a second node on them should hear so before it touches anything.
    let control_listener = bind("control", settings.control).await?;
    let control_address = control_listener.local_addr().map_err(no_address)?;
    let metrics = match settings.metrics {
        Some(address) => Some(bind("metrics", address).await?),
        None => None,
    };
    let metrics_address =
        metrics.as_ref().map(TcpListener::local_addr).transpose().map_err(no_address)?;
    // The shards' listener comes last, and a tier may take minutes to format.
    drop(bind("listen", settings.listen).await?);
    let opened = tokio::task::block_in_place(|| media::open(settings, output))?;
    let recovery = opened.recovery.clone();
    let serving = start(settings, opened, silos, control_listener).await?;
    if let Some(listener) = metrics {
        tokio::spawn(metrics::serve(listener, Arc::clone(&serving.handle)));
    }
    let signals = end::Signals::new()?;
    let listen = serving.listener.local_addr().unwrap_or(settings.listen);
    ready::announce(
        &ready::Ready {
            listen: listen.to_string(),
            rdma: serving.listener.rdma_addrs().iter().map(ToString::to_string).collect(),
            proofs: settings.proofs.name(),
            socket: settings.socket.clone(),
            control: control_address.to_string(),
            metrics: metrics_address.map(|address| address.to_string()),
            state_dir: settings.state_dir.clone(),
            identity: format!("{:032x}", serving.control.identity()),
            recovery,
        },
        output,
    )?;
    notifier.ready("serving");
    let watchdog = tokio::spawn(watch_over(Notifier::from_env(), Arc::clone(&serving.handle)));
    signals.first().await;
    notifier.stopping("draining");
    let ended = end::stop(serving, output).await;
    watchdog.abort();
    ended
}

async fn start(
    settings: &Settings,
    opened: media::Opened,
    silos: Vec<silo::Mount>,
    control_listener: TcpListener,
) -> Result<Serving> {
    let identity = opened.tier.id().0;
    let tier = Arc::clone(&opened.tier);
    let (parts, inboxes) = parts::assemble(settings, opened, silos.clone())?;
    let node = Node::start(parts)?;
    let handle = node.handle();
    let mut options = control::Options::new(settings.state_dir.join(CONTROL_DATABASE));
    options.expected_identity = Some(identity);
    options.scrub_every = settings.tier.scrub_every;
    let control = Control::start(options, Arc::clone(&handle)).await.map_err(explain_identity)?;
    let control = Arc::new(control);
    // Every pin is known from here on: only now may anything be evicted.
    tier.allow_eviction();
    let (stop_control, stopped) = oneshot::channel();
    let control_task = tokio::spawn({
        let control = Arc::clone(&control);
        async move {
            let stop = async {
                // A sender that is gone means the same.
                let _ = stopped.await;
            };
            control.serve(control_listener, stop).await
        }
    });
    let listener = Listener::start(
        ListenerOptions {
            tcp: vec![settings.listen],
            unix: Some(settings.socket.clone()),
            rdma: settings.rdma.as_ref().map_or_else(Vec::new, |rdma| rdma.listen.clone()),
            shm: shm_options(settings),
            gate: Arc::new(gate::ProofGate::new(control.grants(), settings.proofs)),
            ..ListenerOptions::default()
        },
        inboxes,
    )?;
    let leftovers = leftovers::remove(&tier, &silos);
    Ok(Serving { node, handle, listener, control, control_task, stop_control, leftovers })
}

fn shm_options(settings: &Settings) -> ShmOptions {
    ShmOptions { peers: settings.peers.clone(), ..ShmOptions::default() }
}

/// The control database and the tier carry the same number; this tells what to do if they do not.
fn explain_identity(error: Error) -> Error {
    if error.kind() == Kind::Denied {
        return error.while_doing(
            "the control database in the state directory and the tier's devices do not belong \
             together (give the devices that this state directory was used with, or another \
             --state-dir)",
        );
    }
    error
}

/// Tells the service manager that the node is alive, as long as its status can be had.
async fn watch_over(notifier: Notifier, handle: Arc<dyn Handle>) {
    let Some(interval) = notify::watchdog_interval() else { return };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        match tokio::time::timeout(interval, handle.status()).await {
            Ok(_) => notifier.alive(),
            Err(_) => tracing::error!("the node does not answer"),
        }
    }
}

fn make_state_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(|e| {
        Error::io(
            format!(
                "making the state directory {}: choose one that this user may write with \
                 --state-dir",
                path.display()
            ),
            e,
        )
    })
}

async fn bind(what: &str, address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let kind = match e.kind() {
            std::io::ErrorKind::AddrInUse => Kind::Busy,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Invalid,
        };
        kind.error(format!(
            "[node] {what}: cannot listen on {address}; is another node running? Choose another \
             address"
        ))
        .caused_by(e)
    })
}

fn no_address(error: std::io::Error) -> Error {
    Error::io("asking a socket for its address", error)
}
