use std::sync::Arc;
use std::time::Duration;

use extent::{Kind, Result};
use tonic::{Request, Response, Status};

use super::Core;
use crate::clock::{millis, now_ms, timestamp};
use crate::grants::Grants;
use crate::kind::status_from_error;
use crate::proto;

/// The service of that name.
pub(super) struct Sessions(pub(super) Arc<Core>);

#[tonic::async_trait]
impl proto::sessions_server::Sessions for Sessions {
    async fn grant(
        &self,
        request: Request<proto::GrantRequest>,
    ) -> Result<Response<proto::SessionGrant>, Status> {
        let granted = grant(&self.0, &request.into_inner());
        granted.map(Response::new).map_err(|e| status_from_error(&e))
    }
}

fn grant(core: &Core, request: &proto::GrantRequest) -> Result<proto::SessionGrant> {
    let tenant = request.tenant.parse()?;
    let connections = request.connections.max(1);
    let ttl = match request.ttl {
        None => Grants::DEFAULT_TTL,
        Some(ttl) => Duration::try_from(ttl)
            .map_err(|_| Kind::Invalid.error("ttl: a time that is not before now"))?,
    };
    let proof = core.grants.grant(tenant, connections, ttl)?;
    tracing::debug!(tenant = request.tenant, connections, ?ttl, "granted sessions");
    Ok(proto::SessionGrant {
        proof: proof.expose().to_vec(),
        tenant: request.tenant.clone(),
        connections,
        expires: Some(timestamp(now_ms().saturating_add(millis(ttl)))),
    })
}

/// Without the secret, wherever a message is printed.
impl std::fmt::Debug for proto::SessionGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionGrant")
            .field("tenant", &self.tenant)
            .field("connections", &self.connections)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
