//! A SeaweedFS server, which speaks S3.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// The bucket that is there from the start.
pub const BUCKET: &str = "test";
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A running server; dropping it ends it.
pub struct Server {
    process: Child,
    home: TempDir,
    pub s3_port: u16,
    pub filer_port: u16,
}

/// Where `ci/seaweedfs` puts the server, or where `FOREBAY_WEED` says it is.
pub fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FOREBAY_WEED") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let homes = std::fs::read_dir(target).ok()?.filter_map(Result::ok);
    homes
        .filter(|home| home.file_name().to_string_lossy().starts_with("seaweedfs-"))
        .map(|home| home.path().join("bin/weed"))
        .find(|weed| weed.is_file())
}

impl Server {
    /// Starts a server and waits until it takes requests.
    pub async fn start(weed: &Path) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        write(
            &home.path().join("s3.json"),
            r#"{"identities":[{"name":"forebay",
                "credentials":[{"accessKey":"forebay","secretKey":"forebay-secret"}],
                "actions":["Admin","Read","Write","List","Tagging"]}]}"#,
        );
        write(
            &home.path().join("credentials"),
            "[default]\naws_access_key_id = forebay\naws_secret_access_key = forebay-secret\n\
             [wrong]\naws_access_key_id = forebay\naws_secret_access_key = wrong\n",
        );
        let ports = free_ports();
        let mut command = Command::new(weed);
        command.arg("server").arg(format!("-dir={}", home.path().display())).args([
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=64",
            "-master.electionTimeout=1s",
            "-volume.max=40",
        ]);
        command.arg(format!("-s3.config={}", home.path().join("s3.json").display()));
        for (name, port) in NAMES.iter().zip(ports) {
            command.arg(format!("-{name}={port}"));
        }
        let log = File::create(home.path().join("log")).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log).stdin(Stdio::null());
        let process = command.spawn().expect("the server starts");
        let mut server = Self { process, home, s3_port: ports[0], filer_port: ports[1] };
        server.wait().await;
        server
    }

    /// A file of credentials; its section `wrong` is not accepted.
    pub fn credentials(&self) -> PathBuf {
        self.home.path().join("credentials")
    }

    async fn wait(&mut self) {
        let start = Instant::now();
        let request = format!(
            "POST /buckets/{BUCKET}/ HTTP/1.1\r\nHost: filer\r\n\
             Connection: close\r\nContent-Length: 0\r\n\r\n"
        );
        loop {
            let answer = ask(self.filer_port, &request).await.unwrap_or_default();
            // Made just now, or the last time round.
            let made = answer.contains(" 201 ") || answer.contains(" 409 ");
            if made && TcpStream::connect(("127.0.0.1", self.s3_port)).await.is_ok() {
                return;
            }
            let ended = self.process.try_wait().expect("a child");
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                let log = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                panic!("the server does not start ({ended:?}), newest line first: {last:#?}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a process that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const NAMES: [&str; 8] = [
    "s3.port",
    "filer.port",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port.grpc",
    "s3.port.grpc",
];

fn free_ports() -> [u16; 8] {
    let listeners = [(); 8].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}

fn write(path: &Path, text: &str) {
    File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
}

async fn ask(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
