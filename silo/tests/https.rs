//! Object stores behind TLS. What a server shows has to lead to one of the system's roots, or of
//! those that `SSL_CERT_FILE` names: the client runs in a process of its own, which gets others.
//!
//! `support/tls` holds a server's certificate for `localhost`, the root that signed it, and a root
//! that did not. Their keys protect nothing.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use extent::Kind;
use forebay_silo::{LimitOptions, Mount, Place, S3, SiloConfig, open};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::stub::{Manners, Stub};
use support::{pattern, read_all};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Makes this program the client, of the server on this port.
const PORT: &str = "FOREBAY_TEST_HTTPS_PORT";
/// Whether the client has the right root.
const TRUSTED: &str = "FOREBAY_TEST_HTTPS_TRUSTED";

fn tls(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls").join(file)
}

/// Takes TLS off, and hands what is inside to a server of plain HTTP.
async fn terminate(plain_port: u16) -> (u16, JoinHandle<()>) {
    let chain = vec![CertificateDer::from_pem_file(tls("server.pem")).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(tls("server.key")).expect("its key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("it has them")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let task = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Clients that trust nobody go away in the middle.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", plain_port)).await else {
                    return;
                };
                drop(copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    (port, task)
}

fn mount(port: &str) -> Mount {
    let s3 = S3 {
        bucket: "bucket".to_owned(),
        endpoint: Some(format!("https://localhost:{port}")),
        region: Some("us-east-1".to_owned()),
        allow_http: false,
        virtual_hosted: false,
        conditional_writes: true,
        credentials_file: None,
        profile: None,
    };
    let limits = LimitOptions { retries: 0, ..LimitOptions::default() };
    let place = Place::S3(s3, String::new());
    open("s3", &SiloConfig { place, limits, read_only: false }).expect("opens")
}

async fn be_the_client(port: &str) {
    let mount = mount(port);
    let head = mount.silo.head("f").await;
    if std::env::var_os(TRUSTED).is_some() {
        let meta = head.expect("there");
        assert_eq!(read_all(&*mount.silo, &meta).await.expect("good"), pattern(1_500_000, 1));
    } else {
        let error = head.expect_err("nobody vouches for the server");
        assert_eq!(error.kind(), Kind::Io, "{error}");
        assert!(error.to_string().contains("invalid peer certificate: UnknownIssuer"), "{error}");
    }
}

/// Runs this test again as the client, with one root.
async fn client(port: u16, root: &str, is_trusted: bool) {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command
        .args(["--exact", "s3_over_tls", "--nocapture"])
        .env(PORT, port.to_string())
        .env("SSL_CERT_FILE", tls(root))
        .env_remove("SSL_CERT_DIR")
        .env_remove("RUST_BACKTRACE")
        .env("NO_PROXY", "localhost")
        .env("AWS_ACCESS_KEY_ID", "a-key")
        .env("AWS_SECRET_ACCESS_KEY", "its-secret");
    if is_trusted {
        command.env(TRUSTED, "1");
    }
    let output = command.output().await.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "with {root}: {said}");
    assert!(said.contains("1 passed"), "with {root}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_over_tls() {
    if let Ok(port) = std::env::var(PORT) {
        return be_the_client(&port).await;
    }
    let stub = Stub::start(Manners::default()).await;
    stub.put("/bucket/f", pattern(1_500_000, 1));
    let (port, task) = terminate(stub.port).await;
    client(port, "other-ca.pem", false).await;
    assert!(stub.take_seen().is_empty(), "not a byte for a server that nobody vouches for");
    client(port, "ca.pem", true).await;
    let seen = stub.take_seen();
    let signed = |line: &str| {
        line.starts_with("AWS4-HMAC-SHA256 Credential=a-key/") && line.contains("Signature=")
    };
    assert!(seen.len() >= 3, "a head and two ranges");
    assert!(seen.iter().all(|head| head.header("authorization").is_some_and(signed)));
    task.abort();
}
