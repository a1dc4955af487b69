//! Silos.

use control::proto as v1;
use serde_json::{Value, json};

use crate::output::table;
use crate::units;

/// A silo as one object.
pub(crate) fn silo_json(silo: &v1::SiloStatus) -> Value {
    json!({
        "name": silo.name,
        "kind": silo.kind,
        "writable": silo.writable,
        "conditional": silo.conditional,
        "read_bytes": silo.read_bytes,
        "written_bytes": silo.written_bytes,
        "errors": silo.errors,
    })
}

/// Silos as a table.
pub(crate) fn silos_table(silos: &[v1::SiloStatus]) -> String {
    let rows: Vec<Vec<String>> = silos
        .iter()
        .map(|silo| {
            vec![
                silo.name.clone(),
                silo.kind.clone(),
                if silo.writable { "read, write" } else { "read" }.to_owned(),
                if silo.conditional { "by the silo" } else { "compared" }.to_owned(),
                units::bytes(silo.read_bytes),
                units::bytes(silo.written_bytes),
                silo.errors.to_string(),
            ]
        })
        .collect();
    table(&["NAME", "KIND", "ALLOWS", "VERSIONS", ">READ", ">WRITTEN", ">ERRORS"], &rows)
}
