//! The gRPC services. Each parses a request into plain types, asks the node, the jobs or the pins,
//! and answers in the protocol's words.

mod convert;
mod files;
mod inflight;
mod jobs;
mod mutate;
mod node;
mod page;
mod sessions;
mod silos;

use std::sync::Arc;

use dataplane::Handle;
use tokio::sync::{Semaphore, watch};
use tonic::service::Routes;

use crate::grants::Grants;
use crate::jobs::Jobs;
use crate::options::Limits;
use crate::pins::Pins;
use crate::proto::files_server::FilesServer;
use crate::proto::jobs_server::JobsServer;
use crate::proto::node_server::NodeServer;
use crate::proto::sessions_server::SessionsServer;
use crate::proto::silos_server::SilosServer;
use crate::store::Store;

pub(crate) use mutate::Mutating;

use inflight::Inflight;

/// Bytes of an answer, at most: twice what the largest job takes.
const ANSWER_BYTES: usize = 4 << 20;

/// What the services share.
pub(crate) struct Core {
    pub(crate) handle: Arc<dyn Handle>,
    pub(crate) store: Arc<Store>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) limits: Arc<Limits>,
    inflight: Inflight,
    mutations: Arc<Semaphore>,
    watches: Arc<Semaphore>,
}

impl Core {
    pub(crate) fn new(
        handle: Arc<dyn Handle>,
        store: Arc<Store>,
        pins: Arc<Pins>,
        jobs: Arc<Jobs>,
        limits: Arc<Limits>,
    ) -> Self {
        Self {
            handle,
            store,
            pins,
            jobs,
            grants: Arc::new(Grants::new(limits.grants)),
            inflight: Inflight::default(),
            mutations: Arc::new(Semaphore::new(limits.mutations)),
            watches: Arc::new(Semaphore::new(limits.watches)),
            limits,
        }
    }

    /// The services. Watches end when `closing` becomes true.
    pub(crate) fn routes(self: &Arc<Self>, closing: watch::Receiver<bool>) -> Routes {
        let most = self.limits.request_bytes;
        let core = || Arc::clone(self);
        let files = FilesServer::new(files::Files(core()));
        let jobs = JobsServer::new(jobs::Jobs { core: core(), closing });
        let silos = SilosServer::new(silos::Silos(core()));
        let node = NodeServer::new(node::Node(core()));
        let sessions = SessionsServer::new(sessions::Sessions(core()));
        Routes::new(files.max_decoding_message_size(most).max_encoding_message_size(ANSWER_BYTES))
            .add_service(
                jobs.max_decoding_message_size(most).max_encoding_message_size(ANSWER_BYTES),
            )
            .add_service(
                silos.max_decoding_message_size(most).max_encoding_message_size(ANSWER_BYTES),
            )
            .add_service(
                node.max_decoding_message_size(most).max_encoding_message_size(ANSWER_BYTES),
            )
            .add_service(
                sessions.max_decoding_message_size(most).max_encoding_message_size(ANSWER_BYTES),
            )
    }
}
