//! NVMe controllers: which there are, and whether the kernel or a node drives them.

use extent::{Error, Kind, Result};
use nvme_tier::device::{NvmeFunction, PciAddress};
use serde_json::{Value, json};

use crate::cli::{DeviceBindArgs, DeviceCommand};
use crate::output::{Output, Tone, table};
use crate::system;
use crate::units;

/// Lists, binds or unbinds.
///
/// # Errors
/// Why a controller is not moved; those named before it have been.
pub(crate) fn device(command: DeviceCommand, output: Output) -> Result<()> {
    match command {
        DeviceCommand::List => show(&NvmeFunction::all()?, output),
        DeviceCommand::Bind(args) => bind(&args, output),
        DeviceCommand::Unbind { addresses } => {
            each(&addresses, output, "kernel", NvmeFunction::unbind)
        }
    }
}

fn bind(args: &DeviceBindArgs, output: Output) -> Result<()> {
    let user = args.user.as_deref().map(user_number).transpose()?;
    each(&args.addresses, output, "vfio", |address| NvmeFunction::bind(address, user))
}

fn user_number(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    system::user_number(name).ok_or_else(|| {
        Kind::NotFound.error(format!("there is no user {name}: correct --user, or give a number"))
    })
}

/// Moves one after the other, and says of each that it is done.
fn each(
    addresses: &[PciAddress],
    output: Output,
    to: &str,
    mut act: impl FnMut(PciAddress) -> Result<NvmeFunction>,
) -> Result<()> {
    let mut moved = Vec::new();
    for address in addresses {
        let function = act(*address)?;
        if !output.is_json() {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let word = output.paint(Tone::Good, if to == "vfio" { "bound" } else { "given back" });
            output.line(format!("{word}  {address}: {driver}"))?;
        }
        moved.push(function);
    }
    if output.is_json() {
        return output.json(&moved.iter().map(to_json).collect::<Vec<_>>());
    }
    Ok(())
}

fn show(functions: &[NvmeFunction], output: Output) -> Result<()> {
    if output.is_json() {
        return output.json(&functions.iter().map(to_json).collect::<Vec<_>>());
    }
    if functions.is_empty() {
        return output.line("no NVMe controllers on the PCI bus of this machine");
    }
    let rows: Vec<Vec<String>> = functions.iter().map(row).collect();
    output.line(table(&["ADDRESS", "DRIVER", ">GROUP", ">NUMA", "MODEL", "NAMESPACES"], &rows))?;
    for function in functions {
        if let Some(obstacle) = function.obstacle() {
            output.line(format!(
                "{}  {}",
                output.paint(Tone::Warn, "not free"),
                obstacle.context()
            ))?;
        }
    }
    Ok(())
}

fn row(function: &NvmeFunction) -> Vec<String> {
    let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    let namespaces: Vec<String> = function
        .namespaces
        .iter()
        .map(|n| format!("{} ({})", n.path.display(), units::bytes(n.capacity_bytes)))
        .collect();
    vec![
        function.address.to_string(),
        function.driver.clone().unwrap_or_else(|| "-".to_owned()),
        number(function.iommu_group),
        number(function.numa_node),
        function.model.clone().unwrap_or_else(|| "-".to_owned()),
        if namespaces.is_empty() { "-".to_owned() } else { namespaces.join(", ") },
    ]
}

fn to_json(function: &NvmeFunction) -> Value {
    let mates: Vec<Value> = function
        .group_mates
        .iter()
        .map(|(address, driver)| json!({ "address": address.to_string(), "driver": driver }))
        .collect();
    let namespaces: Vec<Value> = function
        .namespaces
        .iter()
        .map(|namespace| {
            json!({
                "path": namespace.path.display().to_string(),
                "capacity_bytes": namespace.capacity_bytes,
                "in_use": namespace.in_use,
            })
        })
        .collect();
    json!({
        "address": function.address.to_string(),
        "driver": function.driver,
        "model": function.model,
        "serial": function.serial,
        "iommu_group": function.iommu_group,
        "group_mates": mates,
        "numa_node": function.numa_node,
        "namespaces": namespaces,
        "obstacle": function.obstacle().as_ref().map(Error::context),
    })
}
