use std::sync::Arc;
use std::{env, fmt};

use extent::{Proof, Result};

/// The variable that a proof is taken from where no source is given.
pub(crate) const VARIABLE: &str = "FOREBAY_PROOF";

/// Where proofs come from: it is asked for one whenever a channel is connected over TCP or RDMA, since
/// most are good for one connection. It may ask the node's control plane, and block while it does.
#[derive(Clone)]
pub struct ProofSource(Arc<dyn Fn() -> Result<Proof> + Send + Sync>);

impl ProofSource {
    /// A source that calls this for each proof.
    pub fn new(draw: impl Fn() -> Result<Proof> + Send + Sync + 'static) -> Self {
        Self(Arc::new(draw))
    }

    /// Whether the variable `FOREBAY_PROOF` names a proof, which is shown where no source is given.
    #[must_use]
    pub fn is_in_environment() -> bool {
        env::var(VARIABLE).is_ok_and(|text| !text.trim().is_empty())
    }

    /// A proof for the next connection.
    ///
    /// # Errors
    /// What the source answers.
    pub fn draw(&self) -> Result<Proof> {
        (self.0)()
    }
}

impl From<Proof> for ProofSource {
    /// The same proof each time: for one that is good for so many connections.
    fn from(proof: Proof) -> Self {
        Self::new(move || Ok(proof.clone()))
    }
}

impl fmt::Debug for ProofSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofSource(…)")
    }
}

/// What to show on the next connection: from the source, or else from the environment, or nothing.
pub(crate) fn next(source: Option<&ProofSource>) -> Result<Option<Proof>> {
    match source {
        Some(source) => source.draw().map(Some),
        None => from_text(env::var(VARIABLE).ok().as_deref()),
    }
}

fn from_text(text: Option<&str>) -> Result<Option<Proof>> {
    let text = text.map(str::trim).filter(|text| !text.is_empty());
    text.map(str::parse).transpose().map_err(|error: extent::Error| error.while_doing(VARIABLE))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use extent::Kind;

    use super::*;

    #[test]
    fn each_connection_has_a_proof_of_its_own() {
        let serial = AtomicU8::new(1);
        let source = ProofSource::new(move || {
            let number = serial.fetch_add(1, Ordering::Relaxed);
            Proof::from_bytes([number; 16]).ok_or_else(|| Kind::Busy.error("no more"))
        });
        let copy = source.clone();
        let drawn = [&source, &copy].map(|source| next(Some(source)).expect("one").expect("one"));
        assert_eq!(drawn.map(|proof| proof.expose()[0]), [1, 2]);
        assert_eq!(format!("{source:?}"), "ProofSource(…)");
        let failing = ProofSource::new(|| Err(Kind::Busy.error("later")));
        assert_eq!(next(Some(&failing)).map(drop).expect_err("told").kind(), Kind::Busy);
    }

    #[test]
    fn the_environment_may_name_one() {
        assert!(from_text(None).expect("none").is_none());
        assert!(from_text(Some(" \n")).expect("none").is_none());
        let digits = "0123456789abcdef0123456789abcdef";
        let proof = from_text(Some(&format!("{digits}\n"))).expect("as a shell has it");
        assert_eq!(proof.expect("one").expose_hex(), digits);
        let error = from_text(Some("secret")).map(drop).expect_err("no proof").to_string();
        assert!(error.contains("FOREBAY_PROOF") && !error.contains("secret"), "{error}");
    }
}
