//! Files.

use control::proto as v1;
use serde_json::{Value, json};

use super::word;
use crate::output::table;
use crate::units;

/// A file as one object. Names are stable.
pub(crate) fn file_json(file: &v1::FileStatus) -> Value {
    json!({
        "name": file.file,
        "id": file.id,
        "generation": file.generation,
        "length": file.length,
        "version": file.version,
        "residency": residency(file),
        "extent_bytes": file.extent_bytes,
        "total_extents": file.total_extents,
        "resident_extents": file.resident_extents,
        "resident_bytes": file.resident_bytes,
        "pins": file.pins,
    })
}

/// Files as a table.
pub(crate) fn files_table(files: &[v1::FileStatus]) -> String {
    let rows: Vec<Vec<String>> = files
        .iter()
        .map(|file| {
            let is_empty = file.length == 0;
            let share = if is_empty { 1.0 } else { units::share(file.resident_bytes, file.length) };
            vec![
                file.file.clone(),
                units::bytes(file.length),
                residency(file),
                format!("{:.0} %", share * 100.0),
                file.generation.to_string(),
                file.pins.join(","),
            ]
        })
        .collect();
    table(&["NAME", ">SIZE", "STATE", ">HERE", ">GEN", "PINS"], &rows)
}

/// Where a file stands, in lower case.
pub(crate) fn residency(file: &v1::FileStatus) -> String {
    word(file.residency().as_str_name(), "RESIDENCY_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_in_words() {
        let mut file = v1::FileStatus {
            file: "data/a".to_owned(),
            length: 8192,
            resident_bytes: 4096,
            ..Default::default()
        };
        file.set_residency(v1::Residency::WritingBack);
        assert_eq!(file_json(&file)["residency"], json!("writing_back"));
        assert!(files_table(&[file]).contains("50 %"));
    }
}
