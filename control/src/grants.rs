//! Proofs that were handed out and are still good: who may open data sessions, and on whose behalf.

use std::collections::HashMap;
use std::time::Duration;

use extent::{Error, Kind, Proof, Result, TenantName};
use parking_lot::Mutex;
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::bugs::{self, Bug};

/// SHA-256 of a proof.
type ProofHash = [u8; 32];

/// The proofs that are outstanding, in memory only: a restart voids them.
///
/// They are known by their hash, and looked up by it. So no proof can be had from here; and how long a
/// look-up takes depends on the hash, of which whoever guesses at proofs cannot choose the first bytes
/// one by one.
#[derive(Debug)]
pub struct Grants {
    known: Mutex<HashMap<ProofHash, Grant>>,
    most: usize,
}

#[derive(Debug)]
struct Grant {
    tenant: TenantName,
    connections_left: u32,
    until: Instant,
}

impl Grants {
    /// The most connections that one proof is good for.
    pub const MAX_CONNECTIONS: u32 = 64;
    /// How long a proof is good for unless told.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(30);
    /// How long a proof is good for at most.
    pub const MAX_TTL: Duration = Duration::from_secs(600);

    /// None yet, and at most so many at a time.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { known: Mutex::default(), most }
    }

    /// Draws a proof for so many connections of a tenant, good until `ttl` from now.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for numbers out of bounds; [`Kind::Busy`] if too many are outstanding;
    /// [`Kind::Io`] if the operating system has no random bytes.
    pub fn grant(&self, tenant: TenantName, connections: u32, ttl: Duration) -> Result<Proof> {
        if !(1..=Self::MAX_CONNECTIONS).contains(&connections) {
            return Err(Kind::Invalid.error(format!(
                "a proof for {connections} connections: it may be for 1 to {}; ask for more proofs",
                Self::MAX_CONNECTIONS
            )));
        }
        if ttl.is_zero() || ttl > Self::MAX_TTL {
            return Err(Kind::Invalid.error(format!(
                "a proof for {ttl:?}: it may be good for up to {:?}; sessions outlive it",
                Self::MAX_TTL
            )));
        }
        let proof = draw()?;
        let now = Instant::now();
        let mut known = self.known.lock();
        known.retain(|_, grant| grant.until > now);
        if known.len() >= self.most && !bugs::is(Bug::GrantsUnbounded) {
            return Err(Kind::Busy.error(format!(
                "{} proofs are outstanding: use them, wait until they expire, or ask for shorter times",
                self.most
            )));
        }
        let grant = Grant { tenant, connections_left: connections, until: now + ttl };
        known.insert(hash(&proof), grant);
        Ok(proof)
    }

    /// Uses a proof for one connection, and says whose it is. It is used even if the connection then
    /// comes to nothing.
    ///
    /// # Errors
    /// [`Kind::Denied`] for one that was never granted, is used up or has expired: which of them is
    /// told to nobody.
    pub fn redeem(&self, proof: &Proof) -> Result<TenantName> {
        let key = hash(proof);
        let now = Instant::now();
        let mut known = self.known.lock();
        let grant = known.get_mut(&key).ok_or_else(refused)?;
        if grant.until <= now && !bugs::is(Bug::ProofOutlivesItsTime) {
            known.remove(&key);
            return Err(refused());
        }
        let mut tenant = grant.tenant.clone();
        if bugs::is(Bug::TenantForgotten) {
            tenant = TenantName::DEFAULT;
        }
        grant.connections_left -= u32::from(!bugs::is(Bug::ProofUsedTwice));
        if grant.connections_left == 0 {
            known.remove(&key);
        }
        Ok(tenant)
    }
}

fn draw() -> Result<Proof> {
    loop {
        let mut bytes = [0; Proof::BYTES];
        OsRng.try_fill_bytes(&mut bytes).map_err(|e| {
            Kind::Io.error("asking the operating system for random bytes").caused_by(e)
        })?;
        if let Some(proof) = Proof::from_bytes(bytes) {
            return Ok(proof);
        }
    }
}

fn hash(proof: &Proof) -> ProofHash {
    Sha256::digest(proof.expose()).into()
}

fn refused() -> Error {
    // Over RDMA it has to fit into 128 bytes.
    Kind::Denied.error(
        "this proof is wrong, used up or expired: ask the control plane for another \
         (forebay session grant)",
    )
}
