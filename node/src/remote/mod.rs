//! A running node, as the control plane shows it.

mod files;
mod jobs;

use std::time::Duration;

use control::{ControlClient, proto as v1};
use extent::{Kind, Proof, Result, TenantName};
pub(crate) use files::{Target, Targets};
pub(crate) use jobs::outcome;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a node's control plane.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    client: ControlClient,
}

impl Remote {
    /// Connects.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an address that is none; [`Kind::Disconnected`] if nobody answers.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let client = ControlClient::connect(address, CONNECT_TIMEOUT).await.map_err(|error| {
            if error.kind() != Kind::Disconnected {
                return error;
            }
            Kind::Disconnected.error(format!(
                "no node answers at {address}: start one with `forebay serve`, or say where it is \
                 with --control or FOREBAY_CONTROL"
            ))
        })?;
        Ok(Self { client })
    }

    /// The node at a glance.
    ///
    /// # Errors
    /// What the node answers.
    pub(crate) async fn status(&self) -> Result<v1::NodeStatus> {
        self.client().status().await
    }

    /// Every silo of the node.
    ///
    /// # Errors
    /// What the node answers.
    pub(crate) async fn silos(&self) -> Result<Vec<v1::SiloStatus>> {
        self.client().silos().await
    }

    /// Whether a silo answers.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a silo that the node does not have.
    pub(crate) async fn probe(&self, silo: &str) -> Result<v1::ProbeSiloResponse> {
        self.client().probe(silo).await
    }

    /// A proof for data sessions of a tenant, and what it is good for.
    ///
    /// # Errors
    /// What the node answers.
    pub(crate) async fn grant(
        &self,
        tenant: &TenantName,
        connections: u32,
        ttl: Duration,
    ) -> Result<(Proof, v1::SessionGrant)> {
        let ttl = ttl.try_into().map_err(|_| Kind::Invalid.error("a proof that lasts too long"))?;
        let tenant = tenant.as_str().to_owned();
        self.client().grant(v1::GrantRequest { tenant, connections, ttl: Some(ttl) }).await
    }

    /// Clones share one connection.
    fn client(&self) -> ControlClient {
        self.client.clone()
    }
}

/// The kind of this name; `Io` for one that only a newer node knows.
pub(crate) fn kind_named(name: &str) -> Kind {
    Kind::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(Kind::Io)
}
