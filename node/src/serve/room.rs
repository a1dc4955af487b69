//! Whether a node may make what it keeps where it is to be, before anything is made; and whether silos are apart from
//! that, and from each other.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use extent::{Kind, Result};
use silo::{Place, SiloConfig};

use crate::config::Settings;
use crate::{system, units};

/// Looks at directories and at what is free there.
///
/// # Errors
/// [`Kind::Denied`] where this user may not write; [`Kind::NotFound`] for a directory of a device that is not there;
/// [`Kind::NoSpace`] for devices that do not fit; [`Kind::Invalid`] for silos that have files, or the node's own, twice.
pub(super) fn check(settings: &Settings) -> Result<()> {
    writable("[node] state_dir", &settings.state_dir)?;
    for device in &settings.devices {
        let Some(bytes) = device.create_bytes.filter(|_| !device.absent) else { continue };
        let parent = device.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        if parent != settings.state_dir && !parent.exists() {
            return Err(Kind::NotFound.error(format!(
                "[[device]] {}: there is no directory {}: make it, or correct the path",
                device.path.display(),
                parent.display()
            )));
        }
        writable("[[device]]", parent)?;
        let free = system::free_bytes(parent)?;
        if bytes > free {
            return Err(Kind::NoSpace.error(format!(
                "{} is to be created with {}, and {} has {} left: give it less",
                device.path.display(),
                units::bytes(bytes),
                parent.display(),
                units::bytes(free)
            )));
        }
    }
    apart(&settings.silos, &settings.state_dir)
}

/// Addresses that somebody listens on already.
pub(super) fn taken(settings: &Settings) -> Vec<(&'static str, SocketAddr)> {
    let addresses = [
        Some(("listen", settings.listen)),
        Some(("control", settings.control)),
        settings.metrics.map(|address| ("metrics", address)),
    ];
    let is_taken = |(_, address): &(&str, SocketAddr)| {
        TcpListener::bind(address).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    addresses.into_iter().flatten().filter(is_taken).collect()
}

fn writable(what: &str, path: &Path) -> Result<()> {
    let there = system::nearest_existing(path);
    if there.is_dir() && system::may_write(there) {
        return Ok(());
    }
    Err(Kind::Denied.error(format!(
        "{what} {}: this user may not write to {}: choose another place, or another user",
        path.display(),
        there.display()
    )))
}

/// A file that has two names would have two versions.
fn apart(silos: &[(String, SiloConfig)], state_dir: &Path) -> Result<()> {
    let state = real(state_dir);
    for (at, (name, silo)) in silos.iter().enumerate() {
        if let Place::Directory { path, .. } = &silo.place
            && overlap(&real(path), &state)
        {
            return Err(Kind::Invalid.error(format!(
                "[silo.{name}] {} and the node's own state directory {} are one in the other: choose another \
                 --state-dir",
                path.display(),
                state_dir.display()
            )));
        }
        let others = &silos[..at];
        let twice = |(_, other): &&(String, SiloConfig)| {
            !(silo.read_only && other.read_only) && is_shared(&silo.place, &other.place)
        };
        if let Some((other, _)) = others.iter().find(twice) {
            return Err(Kind::Invalid.error(format!(
                "[silo.{name}] and [silo.{other}] have files in common, which would have two names and two \
                 versions: leave one out, or have both `read_only`"
            )));
        }
    }
    Ok(())
}

fn is_shared(one: &Place, other: &Place) -> bool {
    let prefixes = |one: &str, other: &str| one.starts_with(other) || other.starts_with(one);
    match (one, other) {
        (Place::Directory { path: one, .. }, Place::Directory { path: other, .. }) => {
            overlap(&real(one), &real(other))
        }
        (Place::S3(one, a), Place::S3(other, b)) => one == other && prefixes(a, b),
        (Place::Gcs(one, a), Place::Gcs(other, b)) => one == other && prefixes(a, b),
        (Place::Azure(one, a), Place::Azure(other, b)) => one == other && prefixes(a, b),
        _ => false,
    }
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let there = system::nearest_existing(path);
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    fs::canonicalize(there).map_or_else(|_| path.to_owned(), |there| there.join(rest))
}
