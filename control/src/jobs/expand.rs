//! Targets to files, a page at a time.

use dataplane::Handle;
use extent::{FileName, Kind, Result};

use super::entry::{Cursor, Work};
use super::spec::{Selection, Spec, Task};

/// The next files from `cursor` on, at most about `page`, and where to go on.
///
/// # Errors
/// What the node or the silo answers for the prefix at `cursor`.
pub(super) async fn expand(
    handle: &dyn Handle,
    spec: &Spec,
    mut cursor: Cursor,
    page: usize,
) -> Result<(Vec<Work>, Cursor)> {
    let mut works = Vec::new();
    while works.len() < page && cursor.target < spec.targets.len() {
        match &spec.targets[cursor.target] {
            Selection::File(name, range) => {
                works.push(Work { name: name.clone(), range: *range });
                cursor.target += 1;
            }
            // A page of names for each call, so that an error loses nothing found before.
            Selection::Prefix { .. } if !works.is_empty() => break,
            Selection::Prefix { silo, key } => {
                let after = cursor.after.take();
                let names = names(handle, spec.task, (silo, key), after.as_ref(), page).await?;
                match names.last() {
                    // Only an empty page is the end: a short one may just be short.
                    None => cursor.target += 1,
                    Some(last) => cursor.after = Some(last.clone()),
                }
                works.extend(names.into_iter().map(|name| Work { name, range: None }));
            }
        }
    }
    Ok((works, cursor))
}

async fn names(
    handle: &dyn Handle,
    task: Task,
    (silo, key): (&str, &str),
    after: Option<&FileName>,
    page: usize,
) -> Result<Vec<FileName>> {
    let names: Vec<FileName> = match task {
        Task::Promote => {
            let found = handle.discover(silo, key, after.map(FileName::key), page).await?;
            found.into_iter().map(|candidate| candidate.name).collect()
        }
        Task::Demote | Task::Writeback => {
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
