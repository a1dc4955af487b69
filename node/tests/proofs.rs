//! A real node that wants proofs, and the real tool and client that show them.

#[expect(dead_code, reason = "other tests need all of it")]
mod node;

use std::fs;
use std::path::Path;
use std::process::Command;

use client::{Client, Endpoint, Options, ProofSource};
use extent::{Kind, Proof};
use node::{Directories, Node};

const BENCH: [&str; 9] =
    ["bench", "--fabric", "tcp", "--seconds", "1", "--depth", "1", "--prefix", "data/"];

fn guarded() -> (Directories, Node) {
    let directories = Directories::new();
    directories.configure_tier("[sessions]\nproof = \"required\"", "");
    fs::write(directories.data().join("file"), vec![7; 100_000]).expect("written");
    let node = Node::start(&directories);
    assert_eq!(node.ready["proofs"], "required");
    node.ask(&["promote", "data/file"]);
    (directories, node)
}

fn granted(node: &Node, arguments: &[&str]) -> String {
    let grant = node.ask(&[&["session", "grant"], arguments].concat());
    assert!(grant["expires_unix_s"].as_i64().expect("a moment") > 0, "{grant}");
    grant["proof"].as_str().expect("text").to_owned()
}

fn connect(node: &Node, proof: Option<ProofSource>) -> extent::Result<Client> {
    let options = Options { proof, ..Options::default() };
    Client::connect(&Endpoint::Tcp(node.listen().to_owned()), &options)
}

#[test]
fn whoever_shows_no_good_proof_is_told_how_to_get_one() {
    let (_directories, node) = guarded();
    let name = "data/file".parse().expect("a name");
    let refused = |proof: Option<ProofSource>| {
        let error = connect(&node, proof).map(drop).expect_err("let in");
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.to_string().contains("forebay session grant"), "{error}");
    };
    refused(None);
    refused(Some(Proof::from_bytes([1; 16]).expect("not zero").into()));
    let proof: Proof = granted(&node, &["--connections", "2"]).parse().expect("a proof");
    for _ in 0..2 {
        let client = connect(&node, Some(proof.clone().into())).expect("a good proof");
        assert_eq!(client.open(&name).expect("there").len(), 100_000);
    }
    refused(Some(proof.into()));
    // Who shares memory with the node is known by other means.
    let local = Client::connect(&Endpoint::Unix(node.socket().into()), &Options::default());
    local.expect("no proof needed").open(&name).expect("there");
    node.stop();
}

#[test]
fn the_tool_gets_proofs_by_itself_or_shows_what_the_environment_has() {
    let (_directories, node) = guarded();
    let data = node.listen().to_owned();
    let bench = [&BENCH[..], &["--data", &data]].concat();
    let report = node.ask(&[&bench[..], &["--sessions", "2", "--tenant", "team-7"]].concat());
    assert_eq!((&report["errors"], &report["fabric"]), (&0.into(), &"tcp".into()), "{report}");

    let proof = granted(&node, &["--tenant", "team-7"]);
    let first = node.run_with(Some(&proof), &bench);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let second = node.run_with(Some(&proof), &bench);
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(10), "used up: {said}");
    assert!(said.contains("used up") && !said.contains(&proof), "{said}");
    let garbage = node.run_with(Some("garbage"), &bench);
    assert_eq!(garbage.status.code(), Some(2));

    assert_eq!(node.refused(&["session", "grant", "--ttl", "11m"]), 2);
    assert_eq!(node.refused(&["session", "grant", "--connections", "65"]), 2);
    assert_eq!(node.refused(&["session", "grant", "--tenant", "a/b"]), 2);
    node.stop();
}

/// The greeting is what the page says, and not only what our own client makes of it.
#[test]
fn a_client_in_another_language_shows_one() {
    let (_directories, node) = guarded();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/tests/protocol_client.py");
    let (host, port) = node.listen().rsplit_once(':').expect("host:port");
    let read = |proof: &str| {
        let mut python = Command::new("python3");
        python.arg(&script).args([host, port, "read", "data/file", "0", "9"]);
        python.env("FOREBAY_PROOF", proof).output().expect("python3 is installed")
    };
    let proof = granted(&node, &[]);
    let first = read(&proof);
    assert_eq!(first.stdout, [7; 9], "{}", String::from_utf8_lossy(&first.stderr));
    for (proof, reason) in [(proof.as_str(), "used up"), ("", "wants a proof")] {
        let refused = read(proof);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("denied") && said.contains(reason),
            "{said}"
        );
    }
    node.stop();
}
