//! promote, demote, writeback, release, resolve, pin, unpin, register, ls, stat.

use control::proto as v1;
use extent::{ByteRange, Kind, Result};

use super::follow;
use crate::cli::{
    DemoteArgs, FileArgs, KeepChoice, ListArgs, PinArgs, PromoteArgs, RegisterArgs, ReleaseArgs,
    ResolveArgs, Selection, UnpinArgs, WritebackArgs,
};
use crate::output::{Output, Tone};
use crate::remote::{Remote, Target, Targets};
use crate::render;

/// More files than this are not acted on one by one.
const MAX_EXPANDED: usize = 1_000_000;

pub(crate) async fn promote(remote: &Remote, args: PromoteArgs, output: Output) -> Result<()> {
    let pin = args.pin.as_deref().zip(args.ttl);
    let targets = targets(args.files, args.range)?;
    let job = remote.promote(targets, args.durable, pin).await?;
    follow(remote, job, args.waiting.detach, output).await
}

pub(crate) async fn demote(remote: &Remote, args: DemoteArgs, output: Output) -> Result<()> {
    let job = remote.demote(targets(args.files, args.range)?).await?;
    follow(remote, job, args.waiting.detach, output).await
}

pub(crate) async fn writeback(remote: &Remote, args: WritebackArgs, output: Output) -> Result<()> {
    let job = remote.writeback(targets(args.files, None)?).await?;
    follow(remote, job, args.waiting.detach, output).await
}

pub(crate) async fn release(remote: &Remote, args: ReleaseArgs, output: Output) -> Result<()> {
    let mut files = Vec::new();
    for name in expand(remote, args.files).await? {
        files.push(remote.release(Target::File(name, args.range)).await?);
    }
    show(&files, false, output)
}

pub(crate) async fn resolve(remote: &Remote, args: ResolveArgs, output: Output) -> Result<()> {
    let keep = match args.keep {
        KeepChoice::Node => v1::Keep::Node,
        KeepChoice::Silo => v1::Keep::Silo,
    };
    let mut files = Vec::new();
    for name in args.names {
        files.push(remote.resolve(&name.to_string(), keep).await?);
    }
    show(&files, false, output)?;
    if keep == v1::Keep::Node && !output.is_json() {
        let hint = "their silos have what they had: `forebay writeback` replaces it";
        output.line(output.paint(Tone::Faint, hint))?;
    }
    Ok(())
}

pub(crate) async fn pin(remote: &Remote, args: PinArgs, output: Output) -> Result<()> {
    let mut files = Vec::new();
    for name in expand(remote, args.files).await? {
        files.push(remote.pin(&name, &args.owner, args.ttl).await?);
    }
    show(&files, false, output)
}

pub(crate) async fn unpin(remote: &Remote, args: UnpinArgs, output: Output) -> Result<()> {
    let mut files = Vec::new();
    for name in expand(remote, args.files).await? {
        files.push(remote.unpin(&name, &args.owner).await?);
    }
    show(&files, false, output)
}

pub(crate) async fn register(remote: &Remote, args: RegisterArgs, output: Output) -> Result<()> {
    let mut files = Vec::new();
    for name in args.names {
        files.push(remote.register(&name.to_string()).await?);
    }
    show(&files, false, output)
}

pub(crate) async fn stat(remote: &Remote, args: FileArgs, output: Output) -> Result<()> {
    let mut files = Vec::new();
    for name in expand(remote, args.files).await? {
        files.push(remote.stat(&name).await?);
    }
    show(&files, false, output)
}

pub(crate) async fn list(remote: &Remote, args: ListArgs, output: Output) -> Result<()> {
    let prefix = args.prefix.unwrap_or_default();
    let (files, more) = remote.list(&prefix, args.limit).await?;
    show(&files, more, output)
}

fn targets(selection: Selection, range: Option<ByteRange>) -> Result<Targets> {
    match (selection.prefix, range) {
        (Some(_), Some(_)) => {
            Err(Kind::Invalid.error("--range needs files by name: it means bytes of one file"))
        }
        (Some(prefix), None) => Ok(vec![Target::Prefix(prefix)]),
        (None, range) => {
            Ok(selection.names.iter().map(|name| Target::File(name.to_string(), range)).collect())
        }
    }
}

/// The names meant, those of a prefix looked up among the files that the node knows.
async fn expand(remote: &Remote, selection: Selection) -> Result<Vec<String>> {
    let Some(prefix) = selection.prefix else {
        return Ok(selection.names.iter().map(ToString::to_string).collect());
    };
    let (files, _) = remote.list(&prefix, MAX_EXPANDED).await?;
    if files.is_empty() {
        return Err(Kind::NotFound.error(format!(
            "the node knows no file that begins with {prefix:?}: `forebay ls` lists them"
        )));
    }
    Ok(files.into_iter().map(|file| file.file).collect())
}

fn show(files: &[v1::FileStatus], more: bool, output: Output) -> Result<()> {
    if output.is_json() {
        let files: Vec<_> = files.iter().map(render::file_json).collect();
        return output.json(&serde_json::json!({ "files": files, "more": more }));
    }
    output.line(render::files_table(files))?;
    if more {
        output.line(output.paint(Tone::Faint, "and more: raise --limit, or narrow the prefix"))?;
    }
    Ok(())
}
