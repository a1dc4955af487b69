use std::time::Duration;

use extent::{Error, Kind, Proof, Result};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use crate::error_from_status;
use crate::proto;
use crate::proto::files_client::FilesClient;
use crate::proto::jobs_client::JobsClient;
use crate::proto::node_client::NodeClient;
use crate::proto::sessions_client::SessionsClient;
use crate::proto::silos_client::SilosClient;
use crate::service::Mutating;

/// How often a node that is silent while a request is open is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A connection to a node's control plane. Clones share it.
///
/// Requests that change something may come without a mutation: a fresh request id is then drawn,
/// and [`ControlClient::with_epoch`]'s epoch is used. To repeat a request safely, give it a
/// request id of your own.
#[derive(Clone, Debug)]
pub struct ControlClient {
    files: FilesClient<Channel>,
    jobs: JobsClient<Channel>,
    silos: SilosClient<Channel>,
    node: NodeClient<Channel>,
    sessions: SessionsClient<Channel>,
    epoch: u64,
}

impl ControlClient {
    /// Connects to `http://host:port` or `host:port`, within `timeout`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an address that makes no sense; [`Kind::Disconnected`] if nobody
    /// answers there in time.
    pub async fn connect(address: &str, timeout: Duration) -> Result<Self> {
        let is_uri = address.contains("://");
        let uri = if is_uri { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri).map_err(|e| {
            let sentence = format!("{address:?} is not an address: write host:port");
            Kind::Invalid.error(sentence).caused_by(e)
        })?;
        let endpoint = endpoint.connect_timeout(timeout).tcp_nodelay(true);
        let endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE);
        let unreachable = || {
            Kind::Disconnected.error(format!(
                "no answer from {address}: is the node running, and is that its control address?"
            ))
        };
        // The whole of it, as name lookups have no timeout of their own.
        let channel = tokio::time::timeout(timeout, endpoint.connect()).await;
        let channel =
            channel.map_err(|_| unreachable())?.map_err(|e| unreachable().caused_by(e))?;
        Ok(Self {
            files: FilesClient::new(channel.clone()),
            jobs: JobsClient::new(channel.clone()),
            silos: SilosClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            sessions: SessionsClient::new(channel),
            epoch: 0,
        })
    }

    /// Asks as the controller of this epoch.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// A mutation with a fresh request id and this client's epoch.
    #[must_use]
    pub fn mutation(&self) -> proto::Mutation {
        proto::Mutation {
            request_id: format!("{:032x}", rand::random::<u128>()),
            controller_epoch: self.epoch,
            ..proto::Mutation::default()
        }
    }

    /// Makes a silo's object known.
    ///
    /// # Errors
    /// What the node answers, as for every other method; [`Kind::Disconnected`] if it does not.
    pub async fn register(&mut self, request: proto::RegisterRequest) -> Result<proto::FileStatus> {
        let request = self.filled(request);
        file(self.files.register(request).await)
    }

    /// What the node knows of a file.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn get(&mut self, file: &str) -> Result<proto::FileStatus> {
        let request = proto::GetFileRequest { file: file.to_owned() };
        answer(self.files.get(request).await)
    }

    /// A page of the files that the node knows.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn list(
        &mut self,
        request: proto::ListFilesRequest,
    ) -> Result<proto::ListFilesResponse> {
        answer(self.files.list(request).await)
    }

    /// Brings files into the tier.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn promote(&mut self, request: proto::PromoteRequest) -> Result<proto::Job> {
        let request = self.filled(request);
        answer(self.files.promote(request).await)
    }

    /// Writes files back and lets them go.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn demote(&mut self, request: proto::DemoteRequest) -> Result<proto::Job> {
        let request = self.filled(request);
        answer(self.files.demote(request).await)
    }

    /// Copies dirty files to their silos.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn writeback(&mut self, request: proto::WritebackRequest) -> Result<proto::Job> {
        let request = self.filled(request);
        answer(self.files.writeback(request).await)
    }

    /// Lets a clean file's extents go.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn release(&mut self, request: proto::ReleaseRequest) -> Result<proto::FileStatus> {
        let request = self.filled(request);
        file(self.files.release(request).await)
    }

    /// Settles a file that was changed on the node and in its silo.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn resolve(&mut self, request: proto::ResolveRequest) -> Result<proto::FileStatus> {
        let request = self.filled(request);
        file(self.files.resolve(request).await)
    }

    /// Protects a file from eviction and release.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn pin(&mut self, request: proto::PinRequest) -> Result<proto::FileStatus> {
        let request = self.filled(request);
        file(self.files.pin(request).await)
    }

    /// Ends a pin.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn unpin(&mut self, request: proto::UnpinRequest) -> Result<proto::FileStatus> {
        let request = self.filled(request);
        file(self.files.unpin(request).await)
    }

    /// A job with everything that is kept of it.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn job(&mut self, id: &str) -> Result<proto::Job> {
        answer(self.jobs.get(proto::GetJobRequest { id: id.to_owned() }).await)
    }

    /// A page of jobs, newest first.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn jobs(
        &mut self,
        request: proto::ListJobsRequest,
    ) -> Result<proto::ListJobsResponse> {
        answer(self.jobs.list(request).await)
    }

    /// Asks a job to stop.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn cancel(&mut self, request: proto::CancelJobRequest) -> Result<proto::Job> {
        let request = self.filled(request);
        answer(self.jobs.cancel(request).await)
    }

    /// Follows a job until it is over.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn watch(&mut self, id: &str) -> Result<JobWatch> {
        let request = proto::WatchJobRequest { id: id.to_owned() };
        let stream = answer(self.jobs.watch(request).await)?;
        Ok(JobWatch { stream })
    }

    /// Every silo of the node.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn silos(&mut self) -> Result<Vec<proto::SiloStatus>> {
        answer(self.silos.list(proto::ListSilosRequest {}).await).map(|found| found.silos)
    }

    /// Asks a silo for one name, to see whether it answers.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn probe(&mut self, silo: &str) -> Result<proto::ProbeSiloResponse> {
        answer(self.silos.probe(proto::ProbeSiloRequest { silo: silo.to_owned() }).await)
    }

    /// The node at a glance.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn status(&mut self) -> Result<proto::NodeStatus> {
        answer(self.node.status(proto::NodeStatusRequest {}).await)
    }

    /// Starts or stops a scrub.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn scrub(&mut self, request: proto::ScrubRequest) -> Result<proto::Job> {
        let request = self.filled(request);
        answer(self.node.scrub(request).await)
    }

    /// A proof for data sessions, and until when it is good.
    ///
    /// # Errors
    /// As [`ControlClient::register`]; [`Kind::Invalid`] if the answer holds none.
    pub async fn grant(
        &mut self,
        request: proto::GrantRequest,
    ) -> Result<(Proof, proto::SessionGrant)> {
        let grant = answer(self.sessions.grant(request).await)?;
        let bytes = grant.proof.as_slice().try_into().ok();
        let proof = bytes.and_then(Proof::from_bytes).ok_or_else(|| {
            Kind::Invalid.error("the node answered without a proof: versions may differ")
        })?;
        Ok((proof, grant))
    }

    fn filled<M: Mutating>(&self, mut request: M) -> M {
        request.mutation_mut().get_or_insert_with(|| self.mutation());
        request
    }
}

/// A job's states as they come.
#[derive(Debug)]
pub struct JobWatch {
    stream: Streaming<proto::Job>,
}

impl JobWatch {
    /// The next state; `None` once the job was over and that was told.
    ///
    /// # Errors
    /// As [`ControlClient::register`].
    pub async fn next(&mut self) -> Result<Option<proto::Job>> {
        self.stream.message().await.map_err(|status| error_from_status(&status))
    }
}

fn answer<T>(answered: Result<Response<T>, Status>) -> Result<T> {
    answered.map(Response::into_inner).map_err(|status| error_from_status(&status))
}

fn file(answered: Result<Response<proto::FileResponse>, Status>) -> Result<proto::FileStatus> {
    let missing =
        || -> Error { Kind::Invalid.error("the node answered without the file's status") };
    answer(answered)?.file.ok_or_else(missing)
}
