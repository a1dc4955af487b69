//! The node and its silos.

use extent::{Kind, Result};
use serde_json::json;

use crate::cli::SiloCommand;
use crate::output::{Output, Tone};
use crate::remote::{Remote, kind_named};
use crate::{render, units};

pub(crate) async fn status(remote: &Remote, output: Output) -> Result<()> {
    let status = remote.status().await?;
    if output.is_json() {
        return output.json(&render::status_json(&status));
    }
    output.line(render::status_text(&status, output))
}

pub(crate) async fn silo(remote: &Remote, command: SiloCommand, output: Output) -> Result<()> {
    match command {
        SiloCommand::List => {
            let silos = remote.silos().await?;
            if output.is_json() {
                let silos: Vec<_> = silos.iter().map(render::silo_json).collect();
                return output.json(&json!({ "silos": silos }));
            }
            output.line(render::silos_table(&silos))
        }
        SiloCommand::Probe { silo } => probe(remote, &silo, output).await,
    }
}

async fn probe(remote: &Remote, silo: &str, output: Output) -> Result<()> {
    let answer = remote.probe(silo).await?;
    let latency = answer.latency.as_ref().map_or(0, nanos);
    if output.is_json() {
        output.json(&json!({
            "silo": answer.silo.as_ref().map(render::silo_json),
            "reachable": answer.reachable,
            "latency_ns": latency,
        }))?;
    } else if answer.reachable {
        let good = output.paint(Tone::Good, "reachable");
        output.line(format!("{silo} {good} in {}", units::nanos(latency)))?;
    }
    if answer.reachable {
        return Ok(());
    }
    let kind = if answer.error_kind.is_empty() { Kind::Io } else { kind_named(&answer.error_kind) };
    Err(kind.error(format!("silo {silo} does not answer: {}", answer.error)))
}

fn nanos(duration: &prost_types::Duration) -> u64 {
    let seconds = u64::try_from(duration.seconds).unwrap_or(0);
    let nanos = u64::try_from(duration.nanos).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
