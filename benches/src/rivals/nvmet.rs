//! The kernel's own way: a block device served by nvmet-rdma to nvme-rdma, on the same machine.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use extent::{Error, Kind, Result};

use crate::cable::Cable;
use crate::ram_disk::has_module;
use crate::verdict::Setback;
use crate::{clock, process};

const CONFIG: &str = "/sys/kernel/config";
const NAME: &str = "nqn.2024-01.example.forebay:compare";
const PORT: &str = "4420";
/// The number of our port in nvmet's configuration.
const PORT_ID: &str = "77";
const MODULES: [&str; 3] = ["nvmet", "nvmet-rdma", "nvme-rdma"];
const APPEAR_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A block device that was exported and is imported again, until this is dropped.
pub struct Nvmet {
    /// What it is here, such as `/dev/nvme1n1`.
    pub block_device: PathBuf,
    controller: String,
}

impl Nvmet {
    /// Exports a block device at the node's end of a cable, and connects to it from the clients'.
    ///
    /// # Errors
    /// [`Setback::Skipped`] without the modules or the right to use them; [`Kind::Io`].
    pub fn connect(device: &Path, cable: &Cable) -> Result<Self, Setback> {
        let modprobe = process::find("modprobe", "kmod")?;
        for module in MODULES {
            if !has_module(&modprobe, module) {
                return Err(Setback::Skipped(format!(
                    "no module {module}: it takes a kernel with NVMe over Fabrics, and root"
                )));
            }
        }
        mount_configuration()?;
        // What is left if this fails half-way is taken away by the next attempt.
        unexport();
        export(device, cable.node.address)?;
        let controller = attach(cable)?;
        match wait_for_namespace(&controller) {
            Ok(block_device) => Ok(Self { block_device, controller }),
            Err(error) => {
                detach(&controller);
                unexport();
                Err(error.into())
            }
        }
    }
}

impl Drop for Nvmet {
    fn drop(&mut self) {
        detach(&self.controller);
        unexport();
    }
}

fn mount_configuration() -> Result<()> {
    if Path::new(CONFIG).join("nvmet").exists() {
        return Ok(());
    }
    let mount = Path::new("/bin/mount");
    let words = ["-t", "configfs", "configfs", CONFIG];
    process::run(&mut process::command(mount, words)).map(drop)
}

fn subsystem() -> PathBuf {
    Path::new(CONFIG).join("nvmet/subsystems").join(NAME)
}

fn port() -> PathBuf {
    Path::new(CONFIG).join("nvmet/ports").join(PORT_ID)
}

fn export(device: &Path, address: IpAddr) -> Result<()> {
    let (subsystem, port) = (subsystem(), port());
    let namespace = subsystem.join("namespaces/1");
    for directory in [&subsystem, &namespace, &port] {
        fs::create_dir(directory)
            .map_err(|e| Error::io(format!("making {}", directory.display()), e))?;
    }
    set(&subsystem.join("attr_allow_any_host"), "1")?;
    set(&namespace.join("device_path"), &device.display().to_string())?;
    set(&namespace.join("enable"), "1")?;
    set(&port.join("addr_trtype"), "rdma")?;
    set(&port.join("addr_adrfam"), "ipv4")?;
    set(&port.join("addr_traddr"), &address.to_string())?;
    set(&port.join("addr_trsvcid"), PORT)?;
    symlink(&subsystem, port.join("subsystems").join(NAME))
        .map_err(|e| Error::io("exporting over nvmet-rdma", e))
}

/// In the order that nvmet wants. What is not there needs no removing.
fn unexport() {
    let _ = fs::remove_file(port().join("subsystems").join(NAME));
    let _ = fs::remove_dir(port());
    let _ = fs::remove_dir(subsystem().join("namespaces/1"));
    let _ = fs::remove_dir(subsystem());
}

/// As `nvme connect` does. Returns the controller's name.
fn attach(cable: &Cable) -> Result<String> {
    let doing = |e| Error::io("connecting by nvme-rdma", e);
    let mut fabrics =
        fs::File::options().read(true).write(true).open("/dev/nvme-fabrics").map_err(doing)?;
    let options = format!(
        "nqn={NAME},transport=rdma,traddr={},trsvcid={PORT},host_traddr={}",
        cable.node.address, cable.client.address
    );
    std::io::Write::write_all(&mut fabrics, options.as_bytes()).map_err(doing)?;
    let mut answer = [0; 256];
    let length = std::io::Read::read(&mut fabrics, &mut answer).map_err(doing)?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    instance(&answer)
        .ok_or_else(|| Kind::Corrupt.error(format!("the kernel connected as {answer:?}")))
}

/// `nvme1` of `instance=1,cntlid=1`.
fn instance(answer: &str) -> Option<String> {
    let words = answer.trim().split(',');
    let number = words.filter_map(|word| word.strip_prefix("instance=")).next()?;
    number.parse::<u32>().ok().map(|number| format!("nvme{number}"))
}

fn detach(controller: &str) {
    let _ = set(&Path::new("/sys/class/nvme").join(controller).join("delete_controller"), "1");
}

fn wait_for_namespace(controller: &str) -> Result<PathBuf> {
    let deadline = clock::now() + APPEAR_LIMIT;
    loop {
        let found = namespace_of(controller).filter(|path| path.exists());
        match found {
            Some(path) => return Ok(path),
            None if clock::now() < deadline => thread::sleep(LOOK_EVERY),
            None => {
                return Err(Kind::Io.error(format!("{controller} showed no namespace")));
            }
        }
    }
}

/// With multipath, the block device is named after the subsystem and not after the controller.
fn namespace_of(controller: &str) -> Option<PathBuf> {
    let subsystems = fs::read_dir("/sys/class/nvme-subsystem").into_iter().flatten().flatten();
    let of_subsystem = subsystems
        .map(|entry| entry.path())
        .find(|path| path.join(controller).exists())
        .and_then(|path| Some(path.file_name()?.to_str()?.replace("-subsys", "")));
    let names = of_subsystem.into_iter().chain([controller.to_owned()]);
    names.map(|name| PathBuf::from(format!("/dev/{name}n1"))).find(|path| path.exists())
}

fn set(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value)
        .map_err(|e| Error::io(format!("writing {value} to {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_which_controller_it_made() {
        assert_eq!(instance("instance=3,cntlid=1\n").as_deref(), Some("nvme3"));
        assert_eq!(instance("cntlid=1"), None);
    }
}
