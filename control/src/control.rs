use std::sync::Arc;
use std::time::Duration;

use dataplane::Handle;
use extent::{Epoch, Error, Kind, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

use crate::grants::Grants;
use crate::jobs::Jobs;
use crate::options::Options;
use crate::pins::Pins;
use crate::proto;
use crate::service::Core;
use crate::store::{Memory, Store};

/// Services whose health is answered for, besides the whole server's.
const SERVICES: [&str; 5] = [
    "forebay.v1.Files",
    "forebay.v1.Jobs",
    "forebay.v1.Silos",
    "forebay.v1.Node",
    "forebay.v1.Sessions",
];
/// Requests at the same time on one connection.
const STREAMS: u32 = 256;
/// How often a silent connection is asked whether its peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A running control plane. Its jobs run whether or not it is being served.
pub struct Control {
    core: Arc<Core>,
    tasks: Vec<JoinHandle<()>>,
}

impl Control {
    /// Opens the database, tells the node of every pin, and only then takes up jobs. Once this
    /// returns, the node may evict.
    ///
    /// # Errors
    /// [`Kind::Denied`] if the database belongs to another tier or is open elsewhere;
    /// [`Kind::Corrupt`], [`Kind::Unsupported`] or [`Kind::Io`] if it cannot be read; what the node
    /// answers to a pin, unless it is that the file is gone.
    pub async fn start(options: Options, handle: Arc<dyn Handle>) -> Result<Self> {
        let limits = Arc::new(options.limits.clone());
        let memory = Memory { ttl: limits.request_ttl, most: limits.requests };
        let opened = tokio::task::spawn_blocking(move || {
            Store::open(&options.path, options.expected_identity, memory)
        });
        let opened =
            opened.await.map_err(|e| Kind::Io.error("opening the control database").caused_by(e));
        let store = Arc::new(opened??);
        let loaded = store.load().await?;
        let pins = Arc::new(Pins::new(Arc::clone(&handle), Arc::clone(&store), limits.pins));
        pins.restore(loaded.pins).await?;
        let jobs = Arc::new(Jobs::new(
            Arc::clone(&handle),
            Arc::clone(&store),
            Arc::clone(&pins),
            Arc::clone(&limits),
        ));
        jobs.restore(loaded.jobs, loaded.next_job).await?;
        jobs.restore_scrub(loaded.last_scrub);
        let mut tasks = vec![
            tokio::spawn(Arc::clone(&pins).expire()),
            tokio::spawn(Arc::clone(&jobs).dispatch()),
        ];
        if let Some(every) = options.scrub_every {
            tasks.push(tokio::spawn(Arc::clone(&jobs).scrub_every(every)));
        }
        let core = Arc::new(Core::new(handle, store, pins, jobs, limits));
        Ok(Self { core, tasks })
    }

    /// The identity that the database shares with the tier.
    #[must_use]
    pub fn identity(&self) -> u128 {
        self.core.store.identity()
    }

    /// The highest controller epoch ever seen.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.core.store.epoch()
    }

    /// The proofs that clients show to open data sessions.
    #[must_use]
    pub fn grants(&self) -> Arc<Grants> {
        Arc::clone(&self.core.grants)
    }

    /// Answers requests on a listener, in clear text, until `shutdown` completes; then lets open
    /// requests finish for [`crate::Limits::shutdown_grace`]. May be called for several listeners.
    ///
    /// # Errors
    /// [`Kind::Io`] if the server fails.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let (closing, closed) = watch::channel(false);
        let (health, health_server) = tonic_health::server::health_reporter();
        for service in SERVICES.into_iter().chain([""]) {
            health.set_service_status(service, ServingStatus::Serving).await;
        }
        let routes = with_reflection(self.core.routes(closed.clone()))?.add_service(health_server);
        let server = Server::builder()
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_routes(routes);
        let stop = {
            let mut closed = closed.clone();
            async move {
                let _ = closed.wait_for(|closed| *closed).await;
            }
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let mut serving = std::pin::pin!(server.serve_with_incoming_shutdown(incoming, stop));
        tokio::select! {
            served = &mut serving => return served.map_err(failed),
            () = shutdown => {}
        }
        for service in SERVICES.into_iter().chain([""]) {
            health.set_service_status(service, ServingStatus::NotServing).await;
        }
        closing.send_replace(true);
        // Streams of others, such as health watches, need not end by themselves.
        match tokio::time::timeout(self.core.limits.shutdown_grace, serving).await {
            Ok(served) => served.map_err(failed),
            Err(_) => {
                tracing::warn!("requests were still open when the control plane stopped serving");
                Ok(())
            }
        }
    }

    /// Stops jobs between two steps and closes the database. Jobs that are not over start again
    /// when a control plane is next started with it. Waits until the node has let go of every
    /// file, so whoever cannot wait that long drops the future.
    pub async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.core.jobs.stop().await;
        self.core.store.close().await;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.core.jobs.abandon();
    }
}

/// Reflection in both of its versions: older tools only know the alpha.
fn with_reflection(routes: Routes) -> Result<Routes> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let broken = |e| Kind::Io.error("building the reflection service").caused_by(e);
    let v1 = builder().build_v1().map_err(broken)?;
    let v1alpha = builder().build_v1alpha().map_err(broken)?;
    Ok(routes.add_service(v1).add_service(v1alpha))
}

fn failed(error: tonic::transport::Error) -> Error {
    Kind::Io.error("serving the control plane").caused_by(error)
}
