//! A real node, driven by the real tool and a real client, on files.

#[expect(dead_code, reason = "other tests need all of it")]
mod node;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use client::{Client, Endpoint, Options, Reconnect};
use extent::{FileName, Generation};
use node::{Directories, Node, eventually, forebay};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// Bytes that differ everywhere, and between seeds.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn connect(endpoint: &Endpoint) -> Client {
    Client::connect(endpoint, &Options::default()).expect("the node answers")
}

fn shm(node: &Node) -> Client {
    connect(&Endpoint::Unix(node.socket().into()))
}

fn tcp(node: &Node) -> Client {
    connect(&Endpoint::Tcp(node.listen().to_owned()))
}

fn read(client: &Client, name: &str) -> Vec<u8> {
    let name: FileName = name.parse().expect("a name");
    let file = client.open(&name).expect("opened");
    let mut all = vec![0; usize::try_from(file.len()).expect("small")];
    let done = file.read_into(0, &mut all).expect("read");
    assert_eq!(done.bytes, all.len() as u64, "{name}");
    all
}

fn write(client: &Client, name: &str, bytes: &[u8]) -> extent::Result<Generation> {
    let writer = client.create(&name.parse()?, bytes.len() as u64)?;
    for (index, chunk) in bytes.chunks(MIB).enumerate() {
        writer.write_at((index * MIB) as u64, chunk)?;
    }
    Ok(writer.commit(bytes.len() as u64)?.generation())
}

/// The lengths that go wrong: around blocks, slots and extents.
const LENGTHS: [usize; 9] =
    [1, 4095, 4096, 4097, 65_537, MIB, 4 * MIB, 4 * MIB + 1, 9 * MIB + 12_345];

fn fill(directory: &Path) -> Vec<(String, Vec<u8>)> {
    fs::create_dir_all(directory.join("sub")).expect("made");
    let files = LENGTHS.iter().enumerate().map(|(index, length)| {
        let key = if index % 2 == 0 { format!("f{index}") } else { format!("sub/f{index}") };
        (key, bytes(index as u64 + 1, *length))
    });
    let files: Vec<_> = files.collect();
    for (key, bytes) in &files {
        fs::write(directory.join(key), bytes).expect("written");
    }
    files
}

fn compare_all(client: &Client, files: &[(String, Vec<u8>)]) {
    for (key, expected) in files {
        assert!(read(client, &format!("data/{key}")) == *expected, "{key} differs");
    }
}

#[test]
fn files_live_a_whole_life() {
    let directories = Directories::new();
    let files = fill(&directories.data());
    let node = Node::start(&directories);

    let job = node.ask(&["promote", "--prefix", "data/"]);
    assert_eq!((&job["state"], &job["files_done"]), (&"done".into(), &files.len().into()));
    let listed = node.ask(&["ls", "data/"]);
    let listed = listed["files"].as_array().expect("a list");
    assert_eq!(listed.len(), files.len());
    assert!(listed.iter().all(|file| file["residency"] == "clean"), "{listed:?}");
    let (shm, tcp) = (shm(&node), tcp(&node));
    compare_all(&shm, &files);
    compare_all(&tcp, &files);

    let checkpoint = bytes(99, 10 * MIB + 77);
    write(&shm, "out/sub/checkpoint", &checkpoint).expect("committed");
    assert_eq!(node.ask(&["stat", "out/sub/checkpoint"])["files"][0]["residency"], "dirty");
    assert_eq!(node.refused(&["release", "out/sub/checkpoint"]), 10, "dirty is not let go");
    assert!(read(&tcp, "out/sub/checkpoint") == checkpoint);
    node.ask(&["demote", "out/sub/checkpoint"]);
    let copy = fs::read(directories.out().join("sub/checkpoint")).expect("the silo has it");
    assert!(copy == checkpoint, "the silo's copy differs");
    assert!(read(&tcp, "out/sub/checkpoint") == checkpoint, "recalled");

    node.ask(&["pin", "--prefix", "data/", "--owner", "job-17", "--ttl", "1h"]);
    assert_eq!(node.refused(&["release", "data/f8"]), 10, "pinned is not let go");
    node.ask(&["unpin", "--prefix", "data/", "--owner", "job-17"]);
    let released = node.ask(&["release", "data/f8"]);
    assert_eq!(released["files"][0]["residency"], "absent");
    compare_all(&shm, &files);
    assert_eq!(node.refused(&["stat", "data/none-such"]), 3);
    drop((shm, tcp));

    let dirty = bytes(100, 3 * MIB);
    write(&self::tcp(&node), "out/dirty", &dirty).expect("committed");
    let end = node.stop();
    assert_eq!(end["dirty"], serde_json::json!(["out/dirty"]));

    let node = Node::start(&directories);
    assert_eq!(node.ready["recovery"]["formatted"], false);
    assert_eq!(node.ready["recovery"]["dirty_files"], 1);
    compare_all(&self::shm(&node), &files);
    assert!(read(&self::shm(&node), "out/dirty") == dirty, "the dirty file survived");
    let status = node.ask(&["status"]);
    assert_eq!(status["misses"], 0, "everything was still there: {status}");
    assert_eq!(status["checksum_errors"], 0);
}

#[test]
fn an_interrupted_tool_names_the_job_that_goes_on() {
    let directories = Directories::new();
    fs::write(directories.data().join("f"), bytes(1, 4 * MIB)).expect("written");
    let node = Node::start(&directories);
    node.ask(&["promote", "data/f"]);
    let mut tool = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["--control", node.ready["control"].as_str().expect("an address")])
        .args(["scrub", "--rate", "4KiB"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    let job = || node.ask(&["jobs", "list"])["jobs"][0].clone();
    // Once it says how far the scrub is, it waits for signals.
    let mut said = String::new();
    let mut stderr = BufReader::new(tool.stderr.take().expect("a pipe"));
    stderr.read_line(&mut said).expect("text");
    let pid = tool.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("it runs").success());
    stderr.read_to_string(&mut said).expect("text");
    assert_eq!(tool.wait().expect("it ends").code(), Some(130), "{said}");
    let id = job()["id"].as_str().expect("text").to_owned();
    assert!(said.contains(&format!("forebay jobs cancel {id}")), "{said}");
    assert_eq!(job()["state"], "running");
    node.ask(&["scrub", "--stop"]);
}

#[test]
fn a_node_is_watched() {
    let directories = Directories::new();
    fill(&directories.data());
    let node = Node::start(&directories);
    let metrics = node.http("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("\nforebay_shards 1.0\n"), "{metrics}");
    assert!(node.http("/healthz").ends_with("\r\n\r\nok\n"));
    assert!(node.http("/else").starts_with("HTTP/1.1 404 "));

    let silos = node.ask(&["silo", "list"]);
    let names: Vec<&Value> =
        silos["silos"].as_array().expect("a list").iter().map(|silo| &silo["name"]).collect();
    assert_eq!(names, ["data", "out"]);
    assert_eq!(node.ask(&["silo", "probe", "data"])["reachable"], true);
    assert_eq!(node.refused(&["silo", "probe", "none"]), 3);

    let detached = node.ask(&["promote", "data/f0", "--detach"]);
    let id = detached["id"].as_str().expect("an id");
    assert_eq!(node.ask(&["jobs", "watch", id])["state"], "done");
    assert_eq!(node.ask(&["jobs", "show", id])["results"][0]["name"], "data/f0");
    assert_eq!(node.ask(&["jobs", "list"])["jobs"].as_array().expect("a list").len(), 1);
    assert_eq!(node.refused(&["promote", "data/none-such"]), 3);

    let bench =
        node.ask(&["bench", "--prefix", "data/f0", "--seconds", "1", "--socket", node.socket()]);
    assert!(bench["operations"].as_u64().expect("a number") > 0, "{bench}");
    assert_eq!(bench["errors"], 0);
}

/// As systemd starts it: told when it serves, kept alive by its status, told when it stops.
#[test]
fn a_service_manager_is_told() {
    let directories = Directories::new();
    let path = directories.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    let mut command = Node::command(&directories);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let node = Node::spawn(command);
    let heard = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).expect("a datagram");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!(heard(), "READY=1\nSTATUS=serving");
    assert_eq!(heard(), "WATCHDOG=1");
    assert_eq!(heard(), "WATCHDOG=1");
    node.stop();
    let mut last = heard();
    while last == "WATCHDOG=1" {
        last = heard();
    }
    assert_eq!(last, "STOPPING=1\nSTATUS=draining");
}

#[test]
fn two_nodes_do_not_share_a_tier() {
    let directories = Directories::new();
    let node = Node::start(&directories);
    let second = Node::command(&directories).output().expect("it runs");
    assert_eq!(second.status.code(), Some(6), "busy");
    node.stop();

    // Another tier in the same place is not this control database's.
    fs::remove_file(directories.state().join("tier.img")).expect("removed");
    let stranger = Node::command(&directories).output().expect("it runs");
    assert_eq!(stranger.status.code(), Some(10));
    let said = String::from_utf8_lossy(&stranger.stderr);
    assert!(said.contains("do not belong together"), "{said}");
}

/// A promote that is killed in the middle goes on after the restart, and no byte is wrong.
#[test]
fn a_promote_survives_kill_9() {
    let directories = Directories::new();
    let big = bytes(7, 48 * MIB + 5);
    fs::write(directories.data().join("big"), &big).expect("written");
    // Slow enough to be caught in the middle.
    let limit = 24 * MIB;
    directories.configure(&format!("read_bytes_per_s = {limit}"));
    let node = Node::start(&directories);
    let job = node.ask(&["promote", "data/big", "--detach"]);
    eventually("the first extents arrive", || {
        node.ask(&["status"])["fetched_extents"].as_u64().expect("a number") >= 2
    });
    node.kill();

    let node = Node::start(&directories);
    let id = job["id"].as_str().expect("an id");
    let ended = node.ask(&["jobs", "watch", id]);
    assert_eq!((&ended["state"], &ended["restarts"]), (&"done".into(), &1.into()), "{ended}");
    assert!(read(&shm(&node), "data/big") == big);
    assert_eq!(node.ask(&["stat", "data/big"])["files"][0]["residency"], "clean");
}

/// Half an upload that a kill leaves in the silo goes away, while the job that made it runs again.
#[test]
fn a_killed_upload_leaves_nothing() {
    let directories = Directories::new();
    // Slow enough to be caught in the middle.
    directories.configure(&format!("write_bytes_per_s = {}", 24 * MIB));
    let parts = || {
        let names = fs::read_dir(directories.data())
            .expect("readable")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
        names.filter(|name| name.ends_with(".part")).collect::<Vec<_>>()
    };
    let somebodys = ".forebay-somebodys.part".to_owned();
    fs::write(directories.data().join(&somebodys), b"theirs").expect("written");
    let node = Node::start(&directories);
    let checkpoint = bytes(8, 40 * MIB + 5);
    write(&shm(&node), "data/checkpoint", &checkpoint).expect("committed");
    let job = node.ask(&["writeback", "data/checkpoint", "--detach"]);
    let is_begun = |name: &String| {
        let path = directories.data().join(name);
        *name != somebodys && fs::metadata(path).is_ok_and(|part| part.len() > 0)
    };
    eventually("the upload begins", || parts().iter().any(is_begun));
    node.kill();
    let left: Vec<_> = parts().into_iter().filter(is_begun).collect();
    assert_eq!(left.len(), 1);

    let node = Node::start(&directories);
    eventually("the leftover goes away", || !parts().contains(&left[0]));
    let ended = node.ask(&["jobs", "watch", job["id"].as_str().expect("an id")]);
    assert_eq!((&ended["state"], &ended["restarts"]), (&"done".into(), &1.into()), "{ended}");
    assert!(fs::read(directories.data().join("checkpoint")).expect("there") == checkpoint);
    assert_eq!(parts(), [somebodys], "nothing but what is not ours");
}

/// Whatever was acknowledged is there after a kill, whole, or something newer, whole.
#[test]
fn commits_survive_kill_9() {
    let directories = Directories::new();
    let length = 5 * MIB + 333;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut seed = 0;
    for round in 0..4_u64 {
        let node = Node::start(&directories);
        if round > 0 {
            let found = read(&shm(&node), "out/checkpoint");
            let least = acknowledged.load(Ordering::SeqCst);
            let is = (least..=seed + 1).find(|seed| found == bytes(*seed, length));
            assert!(is.is_some(), "round {round}: neither {least} nor anything newer, whole");
            // A commit whose answer was lost may have happened.
            seed = is.expect("checked above");
        }
        // One that ends with the node.
        let options = Options { reconnect: None, ..Options::default() };
        let endpoint = Endpoint::Tcp(node.listen().to_owned());
        let client = Client::connect(&endpoint, &options).expect("the node answers");
        let writer = thread::spawn({
            let acknowledged = Arc::clone(&acknowledged);
            move || loop {
                if write(&client, "out/checkpoint", &bytes(seed + 1, length)).is_err() {
                    return seed;
                }
                seed += 1;
                acknowledged.store(seed, Ordering::SeqCst);
            }
        });
        let enough = acknowledged.load(Ordering::SeqCst) + 2 + round;
        eventually("a few commits", || acknowledged.load(Ordering::SeqCst) >= enough);
        node.kill();
        seed = writer.join().expect("the writer ended");
    }
}

/// Readers do not notice that their node was killed and started again; writers are told.
#[test]
fn clients_survive_their_node() {
    let directories = Directories::new();
    let big = bytes(9, 9 * MIB + 5);
    fs::write(directories.data().join("big"), &big).expect("written");
    let node = Node::start(&directories);
    node.ask(&["promote", "data/big"]);
    let listen = node.listen().to_owned();
    let endpoints = [Endpoint::Unix(node.socket().into()), Endpoint::Tcp(listen.clone())];
    let mut running = Some(node);
    for endpoint in endpoints {
        let client = connect(&endpoint);
        let file = client.open(&"data/big".parse().expect("a name")).expect("opened");
        let writer = client.create(&"out/new".parse().expect("a name"), 0).expect("begun");
        writer.write_at(0, &big[..MIB]).expect("written");
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut memory = client.alloc(3 * MIB).expect("memory");
                for round in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let at = round * 7919 % (6 * MIB);
                    let read = file.read_at(at as u64, &mut memory, ..).expect("read");
                    assert_eq!(read.bytes, 3 * MIB as u64);
                    assert!(memory.as_slice() == &big[at..at + 3 * MIB], "round {round}");
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
            let more = |what| {
                let enough = done.load(Ordering::SeqCst) + 5;
                eventually(what, || done.load(Ordering::SeqCst) >= enough || reader.is_finished());
            };
            more("reads before");
            running.take().expect("it runs").kill();
            let mut command = Node::command(&directories);
            command.args(["--listen", &listen]);
            running = Some(Node::spawn(command));
            more("reads afterwards");
            stop.store(true, Ordering::SeqCst);
        });
        assert_eq!(client.stats().reconnections, 1);
        let error = writer.commit(MIB as u64).err().expect("the draft went with the node");
        assert!(error.to_string().contains("write all of it"), "{error}");
        write(&client, "out/new", &big[..MIB]).expect("written whole");
    }
    let reconnect = Reconnect { give_up_after: Duration::from_millis(100), ..Reconnect::default() };
    let options = Options { reconnect: Some(reconnect), ..Options::default() };
    let client = Client::connect(&Endpoint::Tcp(listen), &options).expect("the node answers");
    let file = client.open(&"data/big".parse().expect("a name")).expect("opened");
    running.take().expect("it runs").kill();
    let error = file.read_into(0, &mut [0; 10]).expect_err("nobody comes back");
    assert!(error.to_string().contains("is it up"), "{error}");
}

/// The protocol is what its description says, and not only what our own client makes of it.
#[test]
fn a_client_in_another_language_works() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/tests/protocol_client.py");
    let directories = Directories::new();
    let files = fill(&directories.data());
    let node = Node::start(&directories);
    let (host, port) = node.listen().rsplit_once(':').expect("host:port");
    let run = |arguments: &[&str]| {
        let ran = Command::new("python3").arg(&script).args([host, port]).args(arguments).output();
        let ran = ran.expect("python3 is installed");
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        ran.stdout
    };
    let (key, expected) = &files[4];
    let range = &expected[1000..60_000];
    let name = format!("data/{key}");
    assert!(run(&["read", &name, "1000", "59000"]) == range, "other bytes");
    run(&["roundtrip", "out/from-python", "300000"]);
    assert_eq!(node.ask(&["stat", "out/from-python"])["files"][0]["length"], 300_000);
}

/// Offline, a tier shows what the node left, and what was damaged since.
#[test]
fn a_tier_is_looked_at_without_a_node() {
    let directories = Directories::new();
    fill(&directories.data());
    let node = Node::start(&directories);
    node.ask(&["promote", "--prefix", "data/"]);
    let image = directories.state().join("tier.img");
    let image = image.to_str().expect("plain");
    assert_eq!(node.refused(&["tier", "check", image]), 6, "the node has it");
    node.stop();

    let ask = |arguments: &[&str]| {
        let output = forebay(&[&["--json"], arguments].concat());
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), value)
    };
    let (code, inspection) = ask(&["tier", "inspect", image]);
    assert_eq!(code, Some(0));
    assert_eq!(inspection["files"].as_array().expect("a list").len(), LENGTHS.len());
    let (code, report) = ask(&["tier", "check", image]);
    assert_eq!((code, &report["sound"]), (Some(0), &true.into()));
    assert_eq!(report["files"], LENGTHS.len());

    // One bit of one extent's data.
    let found = &bytes(8, 4 * MIB + 1)[..64];
    let mut all = fs::read(image).expect("readable");
    // Slots begin at blocks.
    let mut blocks = (0..all.len()).step_by(4096);
    let at = blocks.find(|at| all[*at..].starts_with(found)).expect("f7 is there");
    all[at + 10] ^= 1;
    fs::write(image, &all).expect("writable");
    let (code, report) = ask(&["tier", "check", image]);
    assert_eq!((code, &report["bad_extent_count"]), (Some(8), &1.into()));
    assert_eq!(report["bad_extents"][0]["name"], "data/sub/f7");

    let node = Node::start(&directories);
    assert!(read(&shm(&node), "data/sub/f7") == bytes(8, 4 * MIB + 1), "repaired by the silo");
    assert_eq!(node.ask(&["status"])["repairs"], 1);
}

/// Flips a bit of the first block that begins with these bytes, under a node that runs.
fn rot(image: &Path, bytes: &[u8]) {
    let all = fs::read(image).expect("readable");
    let mut blocks = (0..all.len()).step_by(4096);
    let at = blocks.find(|at| all[*at..].starts_with(&bytes[..64])).expect("it is there");
    let file = fs::File::options().write(true).open(image).expect("writable");
    file.write_all_at(&[all[at + 10] ^ 1], at as u64 + 10).expect("written");
    file.sync_all().expect("flushed");
}

#[test]
fn a_scrub_repairs_what_rots_and_reports_what_it_cannot() {
    let directories = Directories::new();
    fill(&directories.data());
    let node = Node::start(&directories);
    node.ask(&["promote", "--prefix", "data/"]);
    let dirty = bytes(100, 3 * MIB);
    write(&tcp(&node), "out/dirty", &dirty).expect("committed");
    let sound = node.ask(&["scrub", "--rate", "1GiB"]);
    assert_eq!((&sound["kind"], &sound["state"]), (&"scrub".into(), &"done".into()));
    assert_eq!((&sound["scrub"]["damaged"], &sound["scrub"]["files"]), (&0.into(), &10.into()));

    let image = directories.state().join("tier.img");
    rot(&image, &bytes(8, 4 * MIB + 1));
    let repaired = &node.ask(&["scrub", "--rate", "1GiB"])["scrub"];
    assert_eq!((&repaired["damaged"], &repaired["repaired"]), (&1.into(), &1.into()));
    assert!(node.http("/metrics").contains("\nforebay_scrub_repaired_total 1\n"));
    assert_eq!(node.ask(&["scrub", "--rate", "1GiB"])["scrub"]["damaged"], 0);

    rot(&image, &dirty);
    assert_eq!(node.refused(&["scrub", "--rate", "1GiB"]), 8, "data loss");
    let status = node.ask(&["status"]);
    assert_eq!(status["last_scrub"]["quarantined"], 1, "{status}");
    assert_eq!(node.ask(&["stat", "out/dirty"])["files"][0]["residency"], "quarantined");

    assert_eq!(node.refused(&["scrub", "--stop"]), 3, "none runs");
    let slow = node.ask(&["scrub", "--rate", "1MiB", "--detach"]);
    assert_eq!(node.refused(&["scrub"]), 6, "one at a time");
    assert_eq!(node.ask(&["scrub", "--stop"])["id"], slow["id"]);
    let stopped = || node.ask(&["jobs", "show", slow["id"].as_str().expect("an id")]);
    eventually("it stops", || stopped()["state"] == "cancelled");
}

#[test]
fn the_demo_finds_every_byte_equal() {
    let directories = Directories::new();
    fill(&directories.data());
    let scratch = directories.path().join("scratch");
    fs::create_dir(&scratch).expect("made");
    let data = directories.data();
    let ran = forebay(&[
        "demo",
        data.to_str().expect("plain"),
        "--json",
        "--checkpoint=9MiB",
        "--scratch",
        scratch.to_str().expect("plain"),
    ]);
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    let last = said.lines().last().expect("a last line");
    let report: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!((&report["mismatches"], &report["restarts"]), (&0.into(), &1.into()));
    assert_eq!(report["files"], LENGTHS.len());
    let source: usize = LENGTHS.iter().sum();
    assert!(report["verified_bytes"].as_u64().expect("a number") > 3 * source as u64);
    for key in ["promote_bytes_per_s", "read_shm_bytes_per_s", "read_tcp_bytes_per_s"] {
        assert!(report[key].as_u64().expect("a number") > 0, "{key}");
    }
    assert_eq!(fs::read_dir(&scratch).expect("there").count(), 0, "nothing is left behind");
}

/// Ctrl-C in the middle of the demo ends the node and takes everything away.
#[test]
fn an_interrupted_demo_leaves_nothing() {
    let directories = Directories::new();
    fill(&directories.data());
    let scratch = directories.path().join("scratch");
    fs::create_dir(&scratch).expect("made");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("demo")
        .arg(directories.data())
        .args(["--json", "--checkpoint=64MiB", "--scratch"])
        .arg(&scratch)
        .spawn()
        .expect("it runs");
    let socket = || {
        let made = fs::read_dir(&scratch).expect("there").next()?.ok()?;
        Some(made.path().join("state/forebay.sock"))
    };
    eventually("its node serves", || socket().is_some_and(|path| path.exists()));
    let pid = demo.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().expect("kill runs");
    assert_eq!(demo.wait().expect("it ended").code(), Some(130));
    assert_eq!(fs::read_dir(&scratch).expect("there").count(), 0);
}
