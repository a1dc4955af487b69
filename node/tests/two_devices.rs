//! A real node on two files as devices, of which it loses one.

#[expect(dead_code, reason = "other tests need all of it")]
mod node;

use std::fs;
use std::path::PathBuf;

use client::{Client, Endpoint, Options};
use extent::FileName;
use node::{Directories, Node, forebay};

const BYTES: usize = (5 << 20) + 4321;

fn devices(directories: &Directories) -> [PathBuf; 2] {
    ["a.img", "b.img"].map(|name| directories.path().join(name))
}

/// A node that keeps what is written on two devices.
fn configured() -> Directories {
    let directories = Directories::new();
    let sections = devices(&directories)
        .map(|path| format!("[[device]]\npath = {path:?}\nsize = \"256MiB\"\n"))
        .concat();
    directories.configure_tier("dirty_copies = 2", &sections);
    directories
}

fn client(node: &Node) -> Client {
    let endpoint = Endpoint::Tcp(node.listen().to_owned());
    Client::connect(&endpoint, &Options::default()).expect("the node answers")
}

fn contents() -> Vec<u8> {
    (0..BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn name() -> FileName {
    "out/checkpoint".parse().expect("a name")
}

fn write(node: &Node) -> extent::Result<()> {
    let client = client(node);
    let writer = client.create(&name(), BYTES as u64)?;
    for (index, chunk) in contents().chunks(1 << 20).enumerate() {
        writer.write_at((index << 20) as u64, chunk)?;
    }
    writer.commit(BYTES as u64).map(drop)
}

fn read(node: &Node) -> Vec<u8> {
    let mut all = vec![0; BYTES];
    let client = client(node);
    let file = client.open(&name()).expect("known");
    assert_eq!(file.read_into(0, &mut all).expect("read").bytes, BYTES as u64);
    all
}

#[test]
fn a_device_is_lost_and_nothing_with_it() {
    for lost in 0..2 {
        let directories = configured();
        let node = Node::start(&directories);
        write(&node).expect("committed on both");
        node.kill();
        let path = &devices(&directories)[lost];
        fs::rename(path, path.with_extension("lost")).expect("lost");

        let refused = Node::command(&directories).output().expect("it runs");
        let refused = String::from_utf8(refused.stderr).expect("text");
        assert!(refused.contains("--without") && !path.exists(), "{refused}");

        let mut command = Node::command(&directories);
        command.arg("--without").arg(path);
        let node = Node::spawn(command);
        assert!(read(&node) == contents(), "from the other device");
        assert_eq!(node.ask(&["status"])["files_missing_copy"], 1);
        assert!(write(&node).is_err(), "it could not be kept twice");
        node.ask(&["writeback", "out/checkpoint"]);
        let copy = fs::read(directories.out().join("checkpoint")).expect("the silo has it");
        assert!(copy == contents(), "the silo's copy differs");
        node.stop();

        fs::rename(path.with_extension("lost"), path).expect("found again");
        let node = Node::start(&directories);
        let known = node.ask(&["stat", "out/checkpoint"]);
        assert_eq!(known["files"][0]["residency"], "clean", "and not dirty again");
        assert!(read(&node) == contents());
        write(&node).expect("on both again");
        node.stop();
    }
}

#[test]
fn what_cannot_be_left_out_is_refused() {
    let directories = configured();
    let wrong = directories.path().join("c.img");
    let refused = Node::command(&directories).arg("--without").arg(&wrong).output();
    let refused = String::from_utf8(refused.expect("it runs").stderr).expect("text");
    assert!(refused.contains("no [[device]] has that path"), "{refused}");
    assert!(forebay(&["serve", "--help"]).status.success());
    directories.configure_tier("dirty_copies = 2", "");
    let refused = Node::command(&directories).output().expect("it runs");
    let refused = String::from_utf8(refused.stderr).expect("text");
    assert!(refused.contains("there is one"), "{refused}");
}
