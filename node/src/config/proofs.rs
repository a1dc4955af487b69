use serde::Deserialize;

/// Whether clients over TCP and RDMA show a proof: `proof` of sessions.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProofPolicy {
    /// Whoever shows none is turned away.
    Required,
    /// Whoever shows none is let in.
    Optional,
}

impl ProofPolicy {
    /// As told; unless told, required where the data path is reached from other machines.
    pub(super) fn resolve(told: Option<Self>, beyond_this_machine: bool) -> Self {
        told.unwrap_or(if beyond_this_machine { Self::Required } else { Self::Optional })
    }

    /// As the configuration has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
        }
    }
}
