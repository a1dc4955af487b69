//! nginx: ranges of a file over HTTP, read with direct I/O by a pool of threads.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use extent::{Error, Result};

use crate::process::{self, Running};
use crate::verdict::Setback;

/// nginx serving a directory until this is dropped.
pub struct Nginx {
    /// Where.
    pub address: SocketAddr,
    _running: Running,
}

/// nginx' place.
///
/// # Errors
/// [`Setback::Skipped`] if it is not installed.
pub fn find() -> Result<PathBuf, Setback> {
    process::find("nginx", "nginx-light")
}

impl Nginx {
    /// Serves the files of `root`, in blocks of `block_bytes`.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if it does not start.
    pub fn serve(program: &Path, root: &Path, directory: &Path, block_bytes: u64) -> Result<Self> {
        let address = process::free_address()?;
        let own = directory.join("nginx");
        crate::setup::make_directory(&own)?;
        let configuration = own.join("nginx.conf");
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let text = configuration_text(&own, root, address, workers, block_bytes);
        fs::write(&configuration, text).map_err(|e| Error::io("configuring nginx", e))?;
        let own = own.display().to_string();
        let configuration = configuration.display().to_string();
        let mut command = process::command(program, ["-p", &own, "-c", &configuration]);
        let log = directory.join("nginx.log");
        let mut running = Running::start(&mut command, &log, Duration::from_secs(10))?;
        running.wait_for_port(address, Duration::from_secs(10))?;
        Ok(Self { address, _running: running })
    }
}

fn configuration_text(
    own: &Path,
    root: &Path,
    address: SocketAddr,
    workers: usize,
    block_bytes: u64,
) -> String {
    // Workers drop root's rights unless told otherwise, and could not read the files then.
    let user = if own.metadata().is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0) {
        "user root;\n"
    } else {
        ""
    };
    let own = own.display();
    format!(
        "{user}daemon off;
worker_processes {workers};
pid {own}/nginx.pid;
error_log stderr warn;
thread_pool reads threads=32 max_queue=65536;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    tcp_nodelay on;
    sendfile off;
    aio threads=reads;
    directio 1;
    directio_alignment 4k;
    output_buffers 2 {block_bytes};
    server {{
        listen {address};
        root \"{root}\";
    }}
}}
",
        root = root.display(),
    )
}
