//! What is told of a tier without a node.

use std::path::PathBuf;

use extent::Result;
use nvme_tier::{CheckReport, Findings, FormatReport, InspectedFile, Inspection, Mark};
use serde_json::{Value, json};

use crate::output::{Output, Tone, table};
use crate::units;

pub(super) fn formatted(report: &FormatReport, output: Output) -> Result<()> {
    if output.is_json() {
        return output.json(&json!({
            "tier": report.tier.to_string(),
            "slab_bytes": report.slab_bytes,
            "extent_bytes": report.extent_bytes,
            "slabs": report.slabs,
            "deallocated_bytes": report.deallocated_bytes,
        }));
    }
    let slabs: u64 = report.slabs.iter().map(|count| u64::from(*count)).sum();
    output.line(format!(
        "{}  tier {}: {} of {}, extents of {}{}",
        output.paint(Tone::Good, "formatted"),
        report.tier,
        units::plural(slabs, "slab"),
        units::bytes(report.slab_bytes),
        units::bytes(report.extent_bytes),
        match report.deallocated_bytes.iter().sum() {
            0 => String::new(),
            told => format!("; {} deallocated", units::bytes(told)),
        }
    ))
}

pub(super) fn inspected(tier: &Inspection, paths: &[PathBuf], output: Output) -> Result<()> {
    if output.is_json() {
        return output.json(&inspection_json(tier, paths));
    }
    output.line(format!(
        "tier {}: slabs of {}, extents of {}, checksums over {}, slots from {} to {}",
        tier.tier,
        units::bytes(tier.slab_bytes),
        units::bytes(tier.extent_bytes),
        units::bytes(tier.checksum_block_bytes.into()),
        units::bytes(tier.min_class_bytes),
        units::bytes(tier.max_class_bytes)
    ))?;
    for (device, path) in tier.devices.iter().zip(paths) {
        let (records, most) = device.records;
        output.line(format!(
            "\n{}  {}, blocks of {}; {} free, {} of records ({} of {}), {} damaged",
            path.display(),
            units::bytes(device.capacity_bytes),
            units::bytes(device.block_bytes.into()),
            units::plural(device.unassigned_slabs.into(), "slab"),
            device.record_slabs,
            units::count(records),
            units::count(most),
            device.damaged_slabs
        ))?;
        let rows: Vec<Vec<String>> = device
            .classes
            .iter()
            .map(|(bytes, (slabs, used, slots))| {
                let full = units::share(*used, *slots) * 100.0;
                let cells = [slabs.to_string(), units::count(*used), units::count(*slots)];
                [vec![units::bytes(*bytes)], cells.to_vec(), vec![format!("{full:.0} %")]].concat()
            })
            .collect();
        if !rows.is_empty() {
            output.line(table(&[">SLOT", ">SLABS", ">EXTENTS", ">SLOTS", ">FULL"], &rows))?;
        }
    }
    let rows: Vec<Vec<String>> = tier.files.iter().map(file_row).collect();
    output.line(format!("\n{}", units::plural(rows.len() as u64, "file")))?;
    if !rows.is_empty() {
        output.line(table(&["NAME", ">SIZE", ">GEN", "STATE", ">HERE"], &rows))?;
    }
    findings_lines(&tier.findings, output)
}

fn file_row(file: &InspectedFile) -> Vec<String> {
    let state = match (file.mark, file.dirty) {
        (Some(mark), _) => mark_word(mark),
        (None, true) => "dirty",
        (None, false) => "clean",
    };
    vec![
        file.name.to_string(),
        units::bytes(file.length),
        file.generation.to_string(),
        state.to_owned(),
        units::bytes(file.resident_bytes),
    ]
}

fn mark_word(mark: Mark) -> &'static str {
    match mark {
        Mark::Conflict => "conflict",
        Mark::Lost => "lost",
        Mark::Quarantined => "quarantined",
    }
}

fn inspection_json(tier: &Inspection, paths: &[PathBuf]) -> Value {
    let devices: Vec<Value> = tier
        .devices
        .iter()
        .zip(paths)
        .map(|(device, path)| {
            let classes: Vec<Value> = device
                .classes
                .iter()
                .map(|(bytes, (slabs, used, slots))| {
                    json!({ "slot_bytes": bytes, "slabs": slabs, "extents": used, "slots": slots })
                })
                .collect();
            json!({
                "path": path,
                "capacity_bytes": device.capacity_bytes,
                "block_bytes": device.block_bytes,
                "unassigned_slabs": device.unassigned_slabs,
                "damaged_slabs": device.damaged_slabs,
                "record_slabs": device.record_slabs,
                "records": device.records.0,
                "record_slots": device.records.1,
                "classes": classes,
            })
        })
        .collect();
    let files: Vec<Value> = tier
        .files
        .iter()
        .map(|file| {
            json!({
                "name": file.name.to_string(),
                "generation": file.generation.0,
                "length": file.length,
                "dirty": file.dirty,
                "mark": file.mark.map(mark_word),
                "source": file.source.as_ref().map(ToString::to_string),
                "resident_extents": file.resident_extents,
                "resident_bytes": file.resident_bytes,
            })
        })
        .collect();
    json!({
        "tier": tier.tier.to_string(),
        "slab_bytes": tier.slab_bytes,
        "extent_bytes": tier.extent_bytes,
        "checksum_block_bytes": tier.checksum_block_bytes,
        "min_class_bytes": tier.min_class_bytes,
        "max_class_bytes": tier.max_class_bytes,
        "devices": devices,
        "files": files,
        "findings": findings_json(&tier.findings),
    })
}

pub(super) fn checked(report: &CheckReport, output: Output) -> Result<()> {
    if output.is_json() {
        let bad: Vec<Value> = report
            .bad_extents
            .iter()
            .map(|extent| {
                json!({
                    "name": extent.name.to_string(),
                    "index": extent.index.0,
                    "device": extent.at.device.0,
                    "offset": extent.at.offset,
                    "dirty": extent.dirty,
                })
            })
            .collect();
        return output.json(&json!({
            "sound": report.is_sound(),
            "files": report.files,
            "extents": report.extents,
            "bytes": report.bytes,
            "bad_extent_count": report.bad_extent_count,
            "bad_extents": bad,
            "quarantined": report.quarantined.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "findings": findings_json(&report.findings),
        }));
    }
    let (tone, word) =
        if report.is_sound() { (Tone::Good, "sound") } else { (Tone::Bad, "damaged") };
    output.line(format!(
        "{}  {}, {} of {} verified, {} bad",
        output.paint(tone, word),
        units::plural(report.files, "file"),
        units::plural(report.extents, "extent"),
        units::bytes(report.bytes),
        units::count(report.bad_extent_count)
    ))?;
    for extent in &report.bad_extents {
        let fate = if extent.dirty { "only here" } else { "its silo has it" };
        output.line(format!(
            "bad  {} extent {} (device {} at {}; {fate})",
            extent.name, extent.index, extent.at.device.0, extent.at.offset
        ))?;
    }
    for name in &report.quarantined {
        output.line(format!("incomplete  {name}, which was only here"))?;
    }
    findings_lines(&report.findings, output)
}

fn findings_lines(findings: &Findings, output: Output) -> Result<()> {
    for (name, count) in named(findings).into_iter().filter(|(_, count)| *count > 0) {
        output.line(format!("{:>8}  {}", units::count(count), name.replace('_', " ")))?;
    }
    Ok(())
}

fn findings_json(findings: &Findings) -> Value {
    Value::Object(named(findings).into_iter().map(|(n, c)| (n.to_owned(), json!(c))).collect())
}

fn named(findings: &Findings) -> [(&'static str, u64); 9] {
    [
        ("bad_superblocks", findings.bad_superblocks),
        ("nameless_records", findings.nameless_records),
        ("repaired_slabs", findings.repaired_slabs),
        ("damaged_slabs", findings.damaged_slabs),
        ("torn_entries", findings.torn_entries),
        ("stale_entries", findings.stale_entries),
        ("damaged_records", findings.damaged_records),
        ("damaged_descriptors", findings.damaged_descriptors),
        ("unreadable_entries", findings.unreadable_entries),
    ]
}
