//! Who may come in: what a listener asks before a client becomes a session.

use std::fmt::Debug;

use extent::{Proof, Result, TenantName};

/// Decides about clients that come over TCP or RDMA. Those that share memory with the node are judged
/// by who they are: see [`crate::PeerPolicy`].
///
/// It is asked once for each connection, on the thread that accepts it or on a shard's: an answer must
/// not take long.
pub trait Gate: Send + Sync + Debug {
    /// Lets a client in that showed this proof, or none, and says on whose behalf it comes.
    ///
    /// # Errors
    /// [`extent::Kind::Denied`] with a sentence for the client, of up to 128 bytes.
    fn admit(&self, proof: Option<&Proof>) -> Result<TenantName>;
}

/// Lets everybody in, as the default tenant: for tests, and where nothing but this machine is reached.
#[derive(Clone, Copy, Debug)]
pub struct OpenGate;

impl Gate for OpenGate {
    fn admit(&self, _: Option<&Proof>) -> Result<TenantName> {
        Ok(TenantName::DEFAULT)
    }
}
