//! Data sessions.

use extent::Result;
use serde_json::json;

use crate::cli::{GrantArgs, SessionCommand};
use crate::output::Output;
use crate::remote::Remote;
use crate::{render, units};

pub(crate) async fn session(
    remote: &Remote,
    command: SessionCommand,
    output: Output,
) -> Result<()> {
    match command {
        SessionCommand::Grant(args) => grant(remote, &args, output).await,
    }
}

async fn grant(remote: &Remote, args: &GrantArgs, output: Output) -> Result<()> {
    let (proof, grant) = remote.grant(&args.tenant, args.connections, args.ttl).await?;
    if output.is_json() {
        return output.json(&json!({
            "proof": proof.expose_hex(),
            "tenant": grant.tenant,
            "connections": grant.connections,
            "expires_unix_s": render::unix_seconds(grant.expires.as_ref()),
        }));
    }
    // The proof stands alone, so that a shell can take it.
    output.line(proof.expose_hex())?;
    output.note(format!(
        "good for {} of tenant {} within {}: give it to the program as FOREBAY_PROOF",
        units::plural(grant.connections.into(), "connection"),
        args.tenant,
        units::nanos(u64::try_from(args.ttl.as_nanos()).unwrap_or(u64::MAX)),
    ));
    Ok(())
}
