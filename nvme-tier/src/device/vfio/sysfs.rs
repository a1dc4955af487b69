//! What the kernel's `/sys` says about NVMe controllers, and which driver they are given to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use extent::{Error, Kind, Result};

use super::PciAddress;
use crate::device::foreign;

const DEVICES: &str = "/sys/bus/pci/devices";
const DRIVERS: &str = "/sys/bus/pci/drivers";
const VFIO: &str = "vfio-pci";
const NVME: &str = "nvme";

/// Mass storage, NVM, with the NVM Express interface (PCI Code and ID Assignment 1.2).
const NVME_CLASS: &str = "0x010802";

/// An NVMe controller on the PCI bus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NvmeFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Its model, if a driver of the kernel knows it.
    pub model: Option<String>,
    /// Its serial number, likewise.
    pub serial: Option<String>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` without an IOMMU.
    pub iommu_group: Option<u32>,
    /// Other functions in that group, with their drivers; bridges aside.
    pub group_mates: Vec<(PciAddress, Option<String>)>,
    /// The NUMA node it is next to.
    pub numa_node: Option<u32>,
    /// Its namespaces, while the kernel's driver has it.
    pub namespaces: Vec<NvmeNamespace>,
}

/// A namespace that the kernel shows as a block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NvmeNamespace {
    /// The block device.
    pub path: PathBuf,
    /// Bytes.
    pub capacity_bytes: u64,
    /// By what it is in use, if it is.
    pub in_use: Option<String>,
}

impl NvmeFunction {
    /// All NVMe controllers of this machine, in the order of their addresses.
    ///
    /// # Errors
    /// [`Kind::Io`] if the kernel does not show its PCI devices.
    pub fn all() -> Result<Vec<Self>> {
        let entries = match fs::read_dir(DEVICES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| Error::io(format!("reading {DEVICES}"), e))?,
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter(|entry| text(&entry.path().join("class")).as_deref() == Some(NVME_CLASS))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .map(look_at)
            .collect();
        found.sort_by_key(|function| function.address);
        Ok(found)
    }

    /// Takes a controller from the kernel's driver and gives it to `vfio-pci`, for this user if one is
    /// named. Does nothing if it is there already.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such controller; [`Kind::Busy`] if a namespace is mounted or
    /// otherwise in use; [`Kind::Invalid`] if its IOMMU group is shared; [`Kind::Unsupported`] without an
    /// IOMMU or without the driver; [`Kind::Denied`] without the right.
    pub fn bind(address: PciAddress, user: Option<u32>) -> Result<Self> {
        let function = find(address)?;
        if let Some(obstacle) = function.obstacle() {
            return Err(obstacle);
        }
        if function.driver.as_deref() != Some(VFIO) {
            load(VFIO)?;
            if let Err(error) = move_to(&function, Some(VFIO)) {
                // As it was before, if it was with a driver.
                if function.driver.is_some() {
                    let _as_before = move_to(&function, None);
                }
                return Err(error);
            }
        }
        let bound = find(address)?;
        if let (Some(user), Some(group)) = (user, bound.iommu_group) {
            let path = format!("/dev/vfio/{group}");
            std::os::unix::fs::chown(&path, Some(user), None)
                .map_err(|e| Error::io(format!("giving {path} to user {user}"), e))?;
        }
        Ok(bound)
    }

    /// Gives a controller back to the kernel's driver. Does nothing if it is there already.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such controller; [`Kind::Busy`] if a process drives it;
    /// [`Kind::Denied`] without the right.
    pub fn unbind(address: PciAddress) -> Result<Self> {
        let function = find(address)?;
        if function.driver.as_deref() == Some(NVME) {
            return Ok(function);
        }
        if let (Some(VFIO), Some(group)) = (function.driver.as_deref(), function.iommu_group) {
            let path = format!("/dev/vfio/{group}");
            let opened = fs::File::options().read(true).write(true).open(&path);
            if opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
                return Err(Kind::Busy.error(format!(
                    "{address} is being driven by a process ({path}): stop that first"
                )));
            }
        }
        load(NVME)?;
        move_to(&function, None)?;
        find(address)
    }

    /// What keeps it from being bound to `vfio-pci`, if anything does.
    #[must_use]
    pub fn obstacle(&self) -> Option<Error> {
        let address = self.address;
        let Some(group) = self.iommu_group else {
            return Some(no_iommu(address));
        };
        if let Some(driver) = self.driver.as_deref().filter(|driver| ![NVME, VFIO].contains(driver))
        {
            return Some(Kind::Busy.error(format!(
                "{address} is with the driver {driver}, and so perhaps in use by another program: \
                 give it back to the kernel's nvme driver first"
            )));
        }
        let taken = |(_, driver): &&(PciAddress, Option<String>)| {
            driver.as_deref().is_some_and(|driver| driver != VFIO)
        };
        if let Some((mate, driver)) = self.group_mates.iter().find(taken) {
            return Some(Kind::Invalid.error(format!(
                "IOMMU group {group} of {address} is shared with {mate}, which the driver {} has: \
                 what one of them may reach, all may. Bind that to vfio-pci too, or move the \
                 controller to another slot",
                driver.as_deref().unwrap_or_default()
            )));
        }
        let used = self.namespaces.iter().find_map(|namespace| namespace.in_use.as_ref());
        used.map(|why| Kind::Busy.error(format!("{address} stays with the kernel: {why}")))
    }
}

/// The IOMMU group of a controller that VFIO can drive.
pub(super) fn group_for_vfio(address: PciAddress) -> Result<u32> {
    let function = find(address)?;
    let Some(group) = function.iommu_group else { return Err(no_iommu(address)) };
    if function.driver.as_deref() == Some(VFIO) {
        return Ok(group);
    }
    Err(Kind::Invalid.error(format!(
        "{address} is bound to {}, not to vfio-pci: `forebay device bind {address}` moves it",
        function.driver.as_deref().map_or("no driver".to_owned(), |d| format!("the driver {d}")),
    )))
}

fn find(address: PciAddress) -> Result<NvmeFunction> {
    match text(&folder(address).join("class")) {
        None => Err(Kind::NotFound.error(format!(
            "there is no PCI device {address}: `forebay device list` shows the NVMe controllers"
        ))),
        Some(class) if class != NVME_CLASS => Err(Kind::Invalid.error(format!(
            "{address} is no NVMe controller (its class is {class}): `forebay device list` shows \
             those"
        ))),
        Some(_) => Ok(look_at(address)),
    }
}

fn no_iommu(address: PciAddress) -> Error {
    Kind::Unsupported.error(format!(
        "{address} is behind no IOMMU, and without one a driver in user space could overwrite any \
         memory: turn it on in the firmware, and boot with intel_iommu=on or amd_iommu=on"
    ))
}

fn look_at(address: PciAddress) -> NvmeFunction {
    let folder = folder(address);
    let group = link_name(&folder.join("iommu_group")).and_then(|name| name.parse().ok());
    let controller = names_in(&folder.join("nvme")).into_iter().next();
    let of_controller =
        |file: &str| text(&folder.join("nvme").join(controller.as_ref()?).join(file));
    NvmeFunction {
        address,
        model: of_controller("model"),
        serial: of_controller("serial"),
        driver: link_name(&folder.join("driver")),
        iommu_group: group,
        group_mates: group_mates(&folder, address),
        numa_node: text(&folder.join("numa_node")).and_then(|node| node.parse().ok()),
        namespaces: controller
            .as_ref()
            .map(|controller| namespaces(&folder.join("nvme").join(controller)))
            .unwrap_or_default(),
    }
}

fn group_mates(folder: &Path, own: PciAddress) -> Vec<(PciAddress, Option<String>)> {
    let mates = folder.join("iommu_group/devices");
    let others = names_in(&mates).into_iter().filter_map(|name| name.parse().ok());
    others
        .filter(|address: &PciAddress| *address != own)
        // Bridges (class 06h) have a driver of the kernel's and are no danger.
        .filter(|address| {
            !text(&self::folder(*address).join("class")).is_some_and(|c| c.starts_with("0x06"))
        })
        .map(|address| (address, link_name(&self::folder(address).join("driver"))))
        .collect()
}

fn namespaces(controller: &Path) -> Vec<NvmeNamespace> {
    let mut found: Vec<_> = names_in(controller)
        .iter()
        .filter_map(|name| {
            let name = block_device(name)?;
            let blocks: u64 =
                text(&Path::new("/sys/class/block").join(&name).join("size"))?.parse().ok()?;
            let path = Path::new("/dev").join(name);
            let in_use = foreign::in_use(&path);
            // The kernel counts in units of 512 bytes, whatever the block size.
            Some(NvmeNamespace { path, capacity_bytes: blocks * 512, in_use })
        })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The block device of a namespace's folder: `nvme0n1` itself, or, of a namespace with several
/// paths, `nvme0c1n1`, whose block device has the number of the subsystem and of the namespace.
fn block_device(name: &str) -> Option<String> {
    let (numbers, namespace) = name.strip_prefix("nvme")?.rsplit_once('n')?;
    let subsystem = numbers.split_once('c').map_or(numbers, |(subsystem, _)| subsystem);
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    (is_number(subsystem) && is_number(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Unbinds a function and has it probed, by the driver named alone or else by whichever likes it.
fn move_to(function: &NvmeFunction, driver: Option<&str>) -> Result<()> {
    let address = function.address;
    let folder = folder(address);
    // A newline alone clears what was set.
    write(&folder.join("driver_override"), driver.unwrap_or("\n"))?;
    if folder.join("driver").exists() {
        write(&folder.join("driver/unbind"), &address.to_string())?;
    }
    write(Path::new("/sys/bus/pci/drivers_probe"), &address.to_string())?;
    let bound = link_name(&folder.join("driver"));
    let wanted = driver.unwrap_or(NVME);
    if bound.as_deref() == Some(wanted) {
        return Ok(());
    }
    Err(Kind::Io.error(format!(
        "{address} is bound to {} after it was offered to {wanted}: the kernel's log (dmesg) says \
         why",
        bound.as_deref().unwrap_or("no driver")
    )))
}

fn load(module: &str) -> Result<()> {
    if Path::new(DRIVERS).join(module).exists() {
        return Ok(());
    }
    let loaded = Command::new("modprobe").arg(module).output();
    if Path::new(DRIVERS).join(module).exists() {
        return Ok(());
    }
    let reason = match loaded {
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("modprobe: {error}"),
    };
    // Loading needs root.
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let (kind, hint) =
        if is_root { (Kind::Unsupported, "") } else { (Kind::Denied, ": run as root") };
    Err(kind.error(format!("the kernel's driver {module} could not be loaded ({reason}){hint}")))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Io,
        };
        let hint = if kind == Kind::Denied { ": run as root" } else { "" };
        kind.error(format!("writing {} to {}{hint}", value.trim(), path.display())).caused_by(error)
    })
}

fn folder(address: PciAddress) -> PathBuf {
    Path::new(DEVICES).join(address.to_string())
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function() -> NvmeFunction {
        NvmeFunction {
            address: "0000:5e:00.0".parse().expect("an address"),
            model: None,
            serial: None,
            driver: Some(NVME.to_owned()),
            iommu_group: Some(7),
            group_mates: Vec::new(),
            numa_node: None,
            namespaces: Vec::new(),
        }
    }

    #[test]
    fn what_is_used_shared_or_unprotected_is_not_bound() {
        assert!(function().obstacle().is_none());
        let unprotected = NvmeFunction { iommu_group: None, ..function() };
        let error = unprotected.obstacle().expect("no IOMMU");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("intel_iommu=on"), "{error}");
        let mate = "0000:5e:00.1".parse().expect("an address");
        let with = |driver: Option<&str>| NvmeFunction {
            group_mates: vec![(mate, driver.map(str::to_owned))],
            ..function()
        };
        assert!(with(None).obstacle().is_none() && with(Some(VFIO)).obstacle().is_none());
        let error = with(Some("ixgbe")).obstacle().expect("shared");
        assert!(
            error.kind() == Kind::Invalid && error.to_string().contains("0000:5e:00.1"),
            "{error}"
        );
        let namespace = NvmeNamespace {
            path: "/dev/nvme0n1".into(),
            capacity_bytes: 0,
            in_use: Some("/dev/nvme0n1 is mounted at /data".to_owned()),
        };
        let used = NvmeFunction { namespaces: vec![namespace], ..function() };
        let error = used.obstacle().expect("mounted");
        assert!(error.kind() == Kind::Busy && error.to_string().contains("/data"), "{error}");
    }

    #[test]
    fn namespaces_of_one_and_of_several_paths_are_found() {
        assert_eq!(block_device("nvme3n12").as_deref(), Some("nvme3n12"));
        assert_eq!(block_device("nvme3c5n1").as_deref(), Some("nvme3n1"));
        for other in ["power", "nvme3", "ng3n1", "hwmon0", "nvme3n"] {
            assert_eq!(block_device(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_to_be_missing() {
        let address = "fffe:ff:1f.7".parse().expect("an address");
        assert_eq!(NvmeFunction::bind(address, None).expect_err("absent").kind(), Kind::NotFound);
        assert_eq!(NvmeFunction::unbind(address).expect_err("absent").kind(), Kind::NotFound);
        NvmeFunction::all().expect("readable, or no PCI bus at all");
    }
}
