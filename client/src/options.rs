use std::time::Duration;

use rdma::VerbsOptions;

use crate::ProofSource;

/// How a session behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests in flight to ask the node for; it may grant fewer.
    pub credits: u16,
    /// Operations that may be submitted and not yet completed. Those beyond the credits wait in
    /// the session; those beyond this are refused as busy.
    pub queue: usize,
    /// Whether every payload's CRC32C is sent along and checked, in both directions.
    pub verify: bool,
    /// How long a blocking call waits. A call that waited in vain ends the session, because the
    /// node might still be writing into its memory.
    pub timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a blocking call polls before it lets the channel wait, which may poll a little
    /// by itself.
    pub spin: Duration,
    /// How a connection over RDMA behaves on the network.
    pub rdma: VerbsOptions,
    /// What proves to the node, over TCP and RDMA, that this client may come in. Without a source, the
    /// environment variable `FOREBAY_PROOF` is shown if there is one.
    pub proof: Option<ProofSource>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            credits: 256,
            queue: 4096,
            verify: false,
            timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            spin: Duration::ZERO,
            rdma: VerbsOptions::default(),
            proof: None,
        }
    }
}
