use std::sync::Arc;

use extent::{Kind, Result};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Core;
use crate::kind::status_from_error;
use crate::proto;

/// The service of that name.
pub(super) struct Silos(pub(super) Arc<Core>);

#[tonic::async_trait]
impl proto::silos_server::Silos for Silos {
    async fn list(
        &self,
        _: Request<proto::ListSilosRequest>,
    ) -> Result<Response<proto::ListSilosResponse>, Status> {
        let silos = self.0.handle.status().await.silos.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListSilosResponse { silos }))
    }

    async fn probe(
        &self,
        request: Request<proto::ProbeSiloRequest>,
    ) -> Result<Response<proto::ProbeSiloResponse>, Status> {
        let probed = probe(&self.0, &request.into_inner().silo).await;
        probed.map(Response::new).map_err(|e| status_from_error(&e))
    }
}

async fn probe(core: &Core, name: &str) -> Result<proto::ProbeSiloResponse> {
    let silos = core.handle.status().await.silos;
    let silo = silos.into_iter().find(|silo| silo.name == name).ok_or_else(|| {
        Kind::NotFound.error(format!("this node has no silo {name:?}: see its configuration"))
    })?;
    let began = Instant::now();
    let found = core.handle.probe(name).await;
    let latency = prost_types::Duration::try_from(began.elapsed()).ok();
    let mut answer = proto::ProbeSiloResponse {
        silo: Some(silo.into()),
        reachable: found.is_ok(),
        latency,
        ..proto::ProbeSiloResponse::default()
    };
    if let Err(error) = found {
        error.kind().name().clone_into(&mut answer.error_kind);
        answer.error = error.to_string();
    }
    Ok(answer)
}
