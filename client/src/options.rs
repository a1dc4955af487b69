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
    /// How long a blocking call waits. A call that waited in vain ends the connection, because the
    /// node might still be writing into its memory.
    pub timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a blocking call polls before it lets the channel wait, which may poll a little
    /// by itself.
    pub spin: Duration,
    /// How a connection over RDMA behaves on the network.
    pub rdma: VerbsOptions,
    /// What happens when a connection is lost; `None` ends the session with it.
    pub reconnect: Option<Reconnect>,
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
            reconnect: Some(Reconnect::default()),
            proof: None,
        }
    }
}

/// How a session that lost its connection gets another one. All rails are tried at once, one after
/// the other, and then again after pauses. A pause is anything between nothing and a limit, which
/// doubles each time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reconnect {
    /// The limit of the first pause.
    pub first_pause: Duration,
    /// The highest limit of a pause.
    pub longest_pause: Duration,
    /// After so long without an answer to any request, everything outstanding fails. What is asked
    /// for later begins anew.
    pub give_up_after: Duration,
    /// How often one request is sent again. One that ends every connection must not go on for ever.
    pub repeats: u32,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
            give_up_after: Duration::from_secs(45),
            repeats: 8,
        }
    }
}
