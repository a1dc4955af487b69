//! Settling files that were changed here and in their silos.

use std::sync::Arc;

use extent::{Error, Generation, Kind, Result};
use nvme_tier::{File, Mark, State};
use silo::ObjectMeta;

use super::Mover;
use crate::handle::Keep;

impl Mover {
    /// Has one of the two go on, at the silo's present version.
    pub(crate) async fn resolve(
        &self,
        file: &Arc<File>,
        keep: Keep,
        expected: Option<Generation>,
    ) -> Result<()> {
        let name = file.name();
        // Not beside an upload, which has a condition of its own.
        let _busy = self.begin(file.id(), |busy| &mut busy.writebacks);
        let turn = self.turn_of(file.id());
        let Ok(_turn) = turn.try_lock() else {
            return Err(Kind::Busy
                .error(format!("{name} is being written back: wait for that, or cancel its job")));
        };
        let generation = file.newest_at(expected)?;
        if generation.state() == State::Clean {
            return Err(nothing_to_settle(file, "nothing was written here that its silo lacks"));
        }
        if self.tier.is_waiting(&generation) {
            return Err(Kind::Denied.error(format!(
                "part of {name} is on a device that the node runs without: bring it back first"
            )));
        }
        let found = match self.silo(name.silo())?.head(name.key()).await {
            Ok(found) => Some(found),
            Err(error) if error.kind() == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        let version = found.as_ref().map(|found| found.version.clone());
        let is_marked = matches!(generation.mark(), Some(Mark::Conflict | Mark::Quarantined));
        // What its silo has may be an upload of this that nobody saw the end of.
        let is_ours = found.as_ref().is_some_and(|it| self.is_upload_of(it, file, &generation));
        if !is_marked && (is_ours || version == generation.base()) {
            return Err(nothing_to_settle(file, "nobody else has changed it: write it back"));
        }
        match (keep, found) {
            (Keep::Node, _) => self.ask(|done| self.tier.rebase(&generation, version, done)).await,
            (Keep::Silo, Some(ObjectMeta { length, version, .. })) => {
                self.ask(|done| self.tier.give_up(file, &generation, length, version, done))
                    .await?;
                Ok(())
            }
            (Keep::Silo, None) => Err(Kind::NotFound.error(format!(
                "its silo has no {name} that could be kept: keep what the node has"
            ))),
        }
    }
}

fn nothing_to_settle(file: &File, why: &str) -> Error {
    Kind::Invalid.error(format!("{} has nothing to settle: {why}", file.name()))
}
