//! Clears away what a node that crashed left half uploaded in its silos.

use std::sync::Arc;
use std::time::Duration;

use nvme_tier::Tier;
use silo::Mount;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Walking a large silo takes long; what is not reached has another chance at the next start.
const PATIENCE: Duration = Duration::from_secs(600);

/// Looks through every silo that takes writes, in the background. Dropping the set ends that.
pub(super) fn remove(tier: &Arc<Tier>, silos: &[Mount]) -> JoinSet<()> {
    let writable = silos.iter().filter(|mount| mount.silo.capabilities().writable);
    writable.map(|mount| from_one(Arc::clone(tier), mount.clone())).collect()
}

async fn from_one(tier: Arc<Tier>, mount: Mount) {
    let silo = mount.name;
    match timeout(PATIENCE, dataplane::remove_leftovers(&tier, &*mount.silo)).await {
        Ok(Ok(0)) => tracing::debug!(%silo, "no upload was left unfinished"),
        Ok(Ok(removed)) => tracing::info!(%silo, removed, "removed unfinished uploads"),
        Ok(Err(error)) => tracing::warn!(
            %silo, %error,
            "cannot look for unfinished uploads: they stay until the next start"
        ),
        Err(_) => tracing::warn!(
            %silo, seconds = PATIENCE.as_secs(),
            "stopped looking for unfinished uploads: the rest stays until the next start"
        ),
    }
}
