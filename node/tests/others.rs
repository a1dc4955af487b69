//! What others do to a silo while a node has its files: nothing of theirs is overwritten, and nothing that is only here
//! is let go.

#[expect(dead_code, reason = "other tests need all of it")]
mod node;

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use client::{Client, Endpoint, Options};
use node::{Directories, Node};

/// What others do to a file.
type Change = fn(&Path);

const INVALID: i32 = 2;
const STALE: i32 = 4;
const NOT_FOUND: i32 = 3;
const DENIED: i32 = 10;

fn connect(node: &Node) -> Client {
    let endpoint = Endpoint::Unix(node.socket().into());
    Client::connect(&endpoint, &Options::default()).expect("the node answers")
}

fn write(client: &Client, name: &str, bytes: &[u8]) {
    let name = name.parse().expect("a name");
    let writer = client.create(&name, bytes.len() as u64).expect("begun");
    writer.write_at(0, bytes).expect("written");
    writer.commit(bytes.len() as u64).expect("committed");
}

fn read(client: &Client, name: &str) -> Vec<u8> {
    let file = client.open(&name.parse().expect("a name")).expect("there");
    let mut all = vec![0; usize::try_from(file.len()).expect("small")];
    file.read_into(0, &mut all).expect("read");
    all
}

fn residency(node: &Node, name: &str) -> String {
    let files = node.ask(&["stat", name]);
    files["files"][0]["residency"].as_str().expect("a word").to_owned()
}

/// File systems' clocks stand still for some milliseconds.
fn tick() {
    thread::sleep(Duration::from_millis(20));
}

#[test]
fn what_others_wrote_over_our_copy_is_not_overwritten() {
    let directories = Directories::new();
    let node = Node::start(&directories);
    let client = connect(&node);
    let changes: [(&str, Change); 3] = [
        ("over", |at| fs::write(at, b"theirs").expect("written")),
        ("behind", |at| {
            let mut file = OpenOptions::new().append(true).open(at).expect("there");
            file.write_all(b"theirs").expect("written");
        }),
        ("within", |at| {
            let mut file = OpenOptions::new().write(true).open(at).expect("there");
            file.write_all(b"T").expect("written");
        }),
    ];
    for (key, change) in changes {
        let name = format!("out/{key}");
        write(&client, &name, b"our first");
        node.ask(&["writeback", &name]);
        write(&client, &name, b"our second");
        tick();
        let at = directories.out().join(key);
        change(&at);
        let theirs = fs::read(&at).expect("there");
        assert_eq!(node.refused(&["demote", &name]), STALE, "{key}");
        assert_eq!(residency(&node, &name), "conflict");
        assert_eq!(node.refused(&["writeback", &name]), STALE, "{key}");
        assert_eq!(fs::read(&at).expect("there"), theirs, "{key}");
        assert_eq!(read(&client, &name), b"our second");
    }
}

#[test]
fn what_others_removed_is_kept_until_it_is_let_go() {
    let directories = Directories::new();
    let at = directories.data().join("only");
    fs::write(&at, b"the only copy").expect("written");
    let node = Node::start(&directories);
    let client = connect(&node);
    node.ask(&["promote", "data/only"]);
    fs::rename(&at, at.with_extension("aside")).expect("moved");
    assert_eq!(node.refused(&["demote", "data/only"]), NOT_FOUND);
    assert_eq!(residency(&node, "data/only"), "lost");
    assert_eq!(read(&client, "data/only"), b"the only copy");

    // As after a mount that was away, but renaming makes a new version.
    fs::rename(at.with_extension("aside"), &at).expect("moved");
    node.ask(&["promote", "data/only"]);
    assert_eq!(residency(&node, "data/only"), "clean");
    fs::remove_file(&at).expect("removed");
    assert_eq!(node.refused(&["promote", "data/only"]), NOT_FOUND);
    assert_eq!(residency(&node, "data/only"), "lost");
    assert_eq!(node.refused(&["demote", "data/only"]), NOT_FOUND);
    assert_eq!(read(&client, "data/only"), b"the only copy");
    node.ask(&["release", "data/only"]);
    assert_eq!(node.ask(&["stat", "data/only"])["files"][0]["resident_bytes"], 0);
}

#[test]
fn a_silo_that_was_replaced_is_not_written_to() {
    let directories = Directories::new();
    let node = Node::start(&directories);
    let client = connect(&node);
    write(&client, "out/f", b"ours");
    let (at, aside) = (directories.out(), directories.path().join("aside"));
    fs::rename(&at, &aside).expect("moved");
    fs::create_dir(&at).expect("made");
    assert_eq!(node.refused(&["demote", "out/f"]), DENIED);
    assert_eq!(residency(&node, "out/f"), "dirty");
    assert_eq!(node.refused(&["silo", "probe", "out"]), DENIED);
    assert_eq!(fs::read_dir(&aside).expect("there").count(), 0);
    fs::remove_dir(&at).expect("empty");
    fs::rename(&aside, &at).expect("back");
    node.ask(&["demote", "out/f"]);
    assert_eq!(fs::read(at.join("f")).expect("there"), b"ours");
}

#[test]
fn a_conflict_is_settled_either_way() {
    let directories = Directories::new();
    let node = Node::start(&directories);
    let client = connect(&node);
    let at = |key: &str| directories.out().join(key);
    let disagree = |key: &str| {
        let name = format!("out/{key}");
        write(&client, &name, b"ours");
        node.ask(&["writeback", &name]);
        write(&client, &name, b"ours, and longer");
        tick();
        fs::write(at(key), b"theirs").expect("written");
        assert_eq!(node.refused(&["writeback", &name]), STALE);
        assert_eq!(residency(&node, &name), "conflict");
        name
    };

    let name = disagree("node");
    node.ask(&["resolve", &name, "--keep", "node"]);
    assert_eq!(residency(&node, &name), "dirty");
    assert_eq!(
        fs::read(at("node")).expect("there"),
        b"theirs",
        "as long as it is not written back"
    );
    // What comes after the choice was not chosen over.
    tick();
    fs::write(at("node"), b"theirs, again").expect("written");
    assert_eq!(node.refused(&["writeback", &name]), STALE);
    node.ask(&["resolve", &name, "--keep", "node"]);
    node.ask(&["writeback", &name]);
    assert_eq!(residency(&node, &name), "clean");
    assert_eq!(fs::read(at("node")).expect("there"), b"ours, and longer");
    assert_eq!(node.refused(&["resolve", &name, "--keep", "silo"]), INVALID);

    let name = disagree("silo");
    let reader = client.open(&name.parse().expect("a name")).expect("there");
    node.ask(&["resolve", &name, "--keep", "silo"]);
    assert_eq!(read(&client, &name), b"theirs");
    // Whoever reads what was given up reads on.
    let mut all = vec![0; b"ours, and longer".len()];
    reader.read_into(0, &mut all).expect("read");
    assert_eq!(all, b"ours, and longer");
    node.ask(&["demote", &name]);
    assert_eq!(fs::read(at("silo")).expect("there"), b"theirs");
    assert_eq!(node.ask(&["status"])["dirty_files"], 0);

    // Only written here: there is nothing to choose from.
    write(&client, "out/new", b"ours");
    for keep in ["node", "silo"] {
        assert_eq!(node.refused(&["resolve", "out/new", "--keep", keep]), INVALID);
    }
    assert_eq!(node.refused(&["resolve", "out/none", "--keep", "node"]), NOT_FOUND);
}

#[test]
fn what_others_removed_under_what_was_written_here_is_a_conflict() {
    let directories = Directories::new();
    let node = Node::start(&directories);
    let client = connect(&node);
    write(&client, "out/f", b"ours");
    node.ask(&["writeback", "out/f"]);
    write(&client, "out/f", b"ours, the second");
    let at = directories.out().join("f");
    fs::remove_file(&at).expect("removed");
    assert_eq!(node.refused(&["writeback", "out/f"]), STALE);
    assert_eq!(residency(&node, "out/f"), "conflict");
    assert_eq!(node.refused(&["resolve", "out/f", "--keep", "silo"]), NOT_FOUND);
    node.ask(&["resolve", "out/f", "--keep", "node"]);
    drop(client);
    node.stop();
    let node = Node::start(&directories);
    assert_eq!(residency(&node, "out/f"), "dirty");
    node.ask(&["demote", "out/f"]);
    assert_eq!(fs::read(&at).expect("there"), b"ours, the second");
}

#[test]
fn a_name_that_nothing_has_is_no_success() {
    let directories = Directories::new();
    let node = Node::start(&directories);
    for command in ["promote", "demote", "writeback"] {
        assert_eq!(node.refused(&[command, "--prefix", "data/no/such"]), NOT_FOUND, "{command}");
    }
    fs::write(directories.data().join("some"), b"some").expect("written");
    node.ask(&["promote", "--prefix", "data/so"]);
    node.ask(&["demote", "--prefix", "data/so"]);
}

/// Answers every request with the same status, until the test is over.
fn web_server(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}/")
}

#[test]
fn silos_without_a_list_are_probed_by_a_name() {
    let directories = Directories::new();
    let web = |name: &str, url: &str| {
        format!("[silo.{name}]\nkind = \"http\"\nurl = \"{url}\"\nallow_http = true\n")
    };
    let (there, shut) = (web_server("404 Not Found"), web_server("403 Forbidden"));
    directories.configure(&[web("there", &there), web("shut", &shut)].concat());
    let node = Node::start(&directories);
    assert_eq!(node.ask(&["silo", "probe", "there"])["reachable"], true);
    assert_eq!(node.refused(&["silo", "probe", "shut"]), DENIED);
    assert_eq!(node.ask(&["silo", "probe", "data"])["reachable"], true);
}
