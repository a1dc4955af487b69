//! Prefixes to files, a page at a time.

use dataplane::Handle;
use extent::{FileName, Kind, Result};

use super::entry::Cursor;
use super::spec::{Selection, Spec, Task};

/// The next names of the prefix at `cursor`, at most `page`; none at its end. A short page need not
/// be the last.
///
/// # Errors
/// What the node or the silo answers; [`Kind::Io`] if it does not get on.
pub(super) async fn list(
    handle: &dyn Handle,
    spec: &Spec,
    cursor: &Cursor,
    page: usize,
) -> Result<Vec<FileName>> {
    let (silo, key) = match &spec.targets[cursor.target] {
        Selection::Prefix { silo, key } => (silo, key),
        Selection::File(name, _) => unreachable!("{name} needs no listing"),
    };
    let after = cursor.after.as_ref();
    let names: Vec<FileName> = match spec.task {
        Task::Promote => {
            let found = handle.discover(silo, key, after.map(FileName::key), page).await?;
            found.into_iter().map(|candidate| candidate.name).collect()
        }
        Task::Demote | Task::Writeback | Task::Scrub => {
            let found = handle.list(&format!("{silo}/{key}"), after, page).await?;
            found.into_iter().map(|status| status.name).collect()
        }
    };
    if let (Some(after), Some(last)) = (after, names.last())
        && last <= after
    {
        return Err(Kind::Io.error(format!(
            "listing {silo}/{key} went in a circle at {last}: its names are not in byte order"
        )));
    }
    Ok(names)
}
