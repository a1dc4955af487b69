//! What uploads of this node's earlier processes left in a silo.

use std::sync::Arc;

use extent::{FileId, Result};
use nvme_tier::Tier;
use silo::Silo;

/// Removes what uploads of this tier's files left in a silo when a node ended in the middle, and
/// returns how many there were. Uploads may run meanwhile. Another node's are never touched: they
/// carry another tier's number. A tier is served by one process at a time, so there is no other
/// that may still be writing.
///
/// # Errors
/// As [`Silo::head`].
pub async fn remove_leftovers(tier: &Arc<Tier>, silo: &dyn Silo) -> Result<u64> {
    let tier = Arc::clone(tier);
    silo.remove_leftovers(Arc::new(move |tags| tier.file(mix(&tier, tags.file)).is_some())).await
}

/// Mixes the tier's own number into a file's id, or out of it: other nodes know the file by the
/// same id, and attempts are unique on a tier only.
pub(super) fn mix(tier: &Tier, file: FileId) -> FileId {
    FileId(file.0 ^ tier.id().0)
}
