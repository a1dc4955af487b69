//! Who may open data sessions over TCP and RDMA.

use std::sync::Arc;

use control::Grants;
use extent::{Kind, Proof, Result, TenantName};
use rdma::Gate;

use crate::config::ProofPolicy;

/// Lets in whoever shows a proof of the control plane's, and, if none is asked for, whoever shows none.
#[derive(Debug)]
pub(super) struct ProofGate {
    grants: Arc<Grants>,
    policy: ProofPolicy,
}

impl ProofGate {
    pub(super) const fn new(grants: Arc<Grants>, policy: ProofPolicy) -> Self {
        Self { grants, policy }
    }
}

impl Gate for ProofGate {
    fn admit(&self, proof: Option<&Proof>) -> Result<TenantName> {
        match (proof, self.policy) {
            (Some(proof), _) => self.grants.redeem(proof),
            (None, ProofPolicy::Optional) => Ok(TenantName::DEFAULT),
            // Over RDMA it has to fit into 128 bytes.
            (None, ProofPolicy::Required) => Err(Kind::Denied.error(
                "this node wants a proof: get one from its control plane \
                 (forebay session grant, FOREBAY_PROOF)",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proof_is_enough_only_where_none_is_wanted_and_a_bad_one_nowhere() {
        for (policy, without) in [(ProofPolicy::Required, false), (ProofPolicy::Optional, true)] {
            let grants = Arc::new(Grants::new(9));
            let gate = ProofGate::new(Arc::clone(&grants), policy);
            assert_eq!(gate.admit(None).is_ok(), without, "{policy:?}");
            let tenant: TenantName = "team".parse().expect("a name");
            let good = grants.grant(tenant.clone(), 1, Grants::DEFAULT_TTL).expect("room");
            assert_eq!(gate.admit(Some(&good)).expect("granted"), tenant);
            for bad in [good, Proof::from_bytes([1; 16]).expect("not zero")] {
                let error = gate.admit(Some(&bad)).expect_err("no good");
                assert_eq!(error.kind(), Kind::Denied);
            }
        }
        let gate = ProofGate::new(Arc::new(Grants::new(9)), ProofPolicy::Required);
        let sentence = gate.admit(None).expect_err("none").to_string();
        assert!(sentence.len() <= extent::wire::Refusal::SENTENCE_BYTES, "{sentence}");
    }
}
