//! A node in memory, and a control plane served in front of it.
#![allow(dead_code, reason = "every test binary uses another part of it")]

mod fake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_control::proto::target::What;
use forebay_control::{Control, ControlClient, Options, proto};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

pub(crate) use fake::Fake;

/// A served control plane and a client of it.
pub(crate) struct Rig {
    pub(crate) fake: Arc<Fake>,
    pub(crate) control: Arc<Control>,
    pub(crate) client: ControlClient,
    pub(crate) address: String,
    pub(crate) directory: tempfile::TempDir,
    shutdown: oneshot::Sender<()>,
    serving: JoinHandle<extent::Result<()>>,
}

impl Rig {
    /// A fresh one.
    pub(crate) async fn new() -> Self {
        Self::with(Fake::new(), |_| {}).await
    }

    /// A fresh one in front of this node.
    pub(crate) async fn with(fake: Arc<Fake>, adjust: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::open(directory, fake, adjust).await
    }

    async fn open(
        directory: tempfile::TempDir,
        fake: Arc<Fake>,
        adjust: impl FnOnce(&mut Options),
    ) -> Self {
        let options = options(&database(directory.path()), adjust);
        let control = Control::start(options, Arc::clone(&fake) as _).await.expect("it starts");
        let control = Arc::new(control);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (shutdown, stopped) = oneshot::channel::<()>();
        let serving = {
            let control = Arc::clone(&control);
            tokio::spawn(
                async move { control.serve(listener, async move { _ = stopped.await }).await },
            )
        };
        let client = ControlClient::connect(&address, Duration::from_secs(30)).await;
        let client = client.expect("it answers");
        Self { fake, control, client, address, directory, shutdown, serving }
    }

    /// A bare connection, for what the client does not show.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address));
        endpoint.expect("an address").connect().await.expect("it answers")
    }

    /// Stops serving.
    pub(crate) async fn close(self) -> (tempfile::TempDir, Arc<Fake>, Control) {
        drop(self.client);
        self.shutdown.send(()).expect("still serving");
        self.serving.await.expect("no panic").expect("it served well");
        let control = Arc::into_inner(self.control).expect("nobody else holds it");
        (self.directory, self.fake, control)
    }

    /// Stops in good order and starts again with the same database.
    pub(crate) async fn restart(self, adjust: impl FnOnce(&mut Options)) -> Self {
        let (directory, fake, control) = self.close().await;
        control.stop().await;
        fake.forget();
        Self::open(directory, fake, adjust).await
    }

    /// The database as a crash at this moment would leave it, in a directory of its own.
    pub(crate) fn crash_image(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::copy(database(self.directory.path()), database(directory.path()))
            .expect("the database is there");
        directory
    }

    /// Starts from what a crash left.
    pub(crate) async fn after_crash(
        image: tempfile::TempDir,
        fake: Arc<Fake>,
        adjust: impl FnOnce(&mut Options),
    ) -> Self {
        fake.forget();
        Self::open(image, fake, adjust).await
    }

    /// Follows a job until it is over.
    pub(crate) async fn finished(&mut self, id: &str) -> proto::Job {
        let mut watch = self.client.watch(id).await.expect("a job");
        let mut last = None;
        while let Some(job) = watch.next().await.expect("a state") {
            last = Some(job);
        }
        let last = last.expect("at least one state");
        assert!(last.finished.is_some(), "the last state is the end: {last:?}");
        self.client.job(id).await.expect("still known")
    }

    /// Promotes these and answers the job.
    pub(crate) async fn promote(&mut self, targets: Vec<proto::Target>) -> proto::Job {
        let request = proto::PromoteRequest { targets, ..Default::default() };
        self.client.promote(request).await.expect("accepted")
    }
}

pub(crate) fn database(directory: &Path) -> PathBuf {
    directory.join("control.redb")
}

pub(crate) fn options(path: &Path, adjust: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::new(path);
    options.limits.watch_interval = Duration::from_millis(5);
    options.limits.busy_pause = Duration::from_millis(1);
    adjust(&mut options);
    options
}

pub(crate) fn file(name: &str) -> proto::Target {
    proto::Target { what: Some(What::File(name.to_owned())) }
}

pub(crate) fn prefix(name: &str) -> proto::Target {
    proto::Target { what: Some(What::Prefix(name.to_owned())) }
}

pub(crate) fn range(name: &str, offset: u64, length: u64) -> proto::Target {
    let range = proto::FileRange { file: name.to_owned(), offset, length };
    proto::Target { what: Some(What::Range(range)) }
}

pub(crate) fn pin(owner: &str, ttl: Duration) -> proto::PinOptions {
    let ttl = prost_types::Duration::try_from(ttl).expect("in range");
    proto::PinOptions { owner: owner.to_owned(), ttl: Some(ttl) }
}

pub(crate) fn mutation(request_id: &str) -> proto::Mutation {
    proto::Mutation { request_id: request_id.to_owned(), ..Default::default() }
}

/// So many seconds from now; before now if negative.
pub(crate) fn moment(seconds: i64) -> prost_types::Timestamp {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let seconds = i64::try_from(now).expect("in range") + seconds;
    prost_types::Timestamp { seconds, nanos: 0 }
}
