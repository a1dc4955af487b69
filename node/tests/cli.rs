//! The built program, seen from a shell.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn forebay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(arguments)
        .env_remove("FOREBAY_CONTROL")
        .env_remove("FOREBAY_CONFIG")
        .env_remove("FOREBAY_LOG")
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// The one JSON object in a stream.
fn object(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e} in {:?}", text(bytes)))
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

/// A port that nobody listens on.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").to_string()
}

#[test]
fn help_is_there_for_everything() {
    let help = forebay(&["--help"]);
    assert_eq!(code(&help), 0);
    let all = text(&help.stdout);
    for word in ["Examples:", "promote", "demo", "doctor", "Exit status:", "--json"] {
        assert!(all.contains(word), "{word} is not in the help");
    }
    for command in [
        "serve",
        "tier",
        "promote",
        "demote",
        "writeback",
        "release",
        "pin",
        "unpin",
        "register",
        "ls",
        "stat",
        "jobs",
        "status",
        "silo",
        "bench",
        "session",
        "doctor",
        "demo",
        "completions",
    ] {
        let help = forebay(&[command, "--help"]);
        assert_eq!(code(&help), 0, "{command}");
        assert!(text(&help.stdout).contains("Usage: forebay"), "{command}");
    }
}

#[test]
fn a_wrong_command_line_exits_2() {
    for arguments in [
        &["promot"][..],
        &["promote"],
        &["promote", "no-slash"],
        &["pin", "a/b"],
        &["promote", "a/b", "--range", "5..4"],
        &["serve", "--tier-size", "much"],
        &["serve", "--silo", "nothing"],
    ] {
        let output = forebay(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    let typo = text(&forebay(&["promot"]).stderr);
    assert!(typo.contains("promote"), "suggests the neighbour: {typo}");
}

#[test]
fn errors_are_json_where_asked() {
    let output = forebay(&["--json", "promote", "no-slash"]);
    assert_eq!(code(&output), 2);
    let error = object(&output.stderr);
    assert_eq!(error["error"]["kind"], "invalid");
    assert!(error["error"]["message"].as_str().expect("text").contains("silo/key"));
}

#[test]
fn without_a_node_it_says_what_to_do() {
    let address = closed_port();
    for command in [&["status"][..], &["ls"], &["jobs", "list"], &["promote", "a/b"]] {
        let output = forebay(&[&["--control", &address], command].concat());
        assert_eq!(code(&output), 9, "{command:?}");
        let error = text(&output.stderr);
        assert!(error.starts_with("forebay: error: "), "{error}");
        assert!(error.contains(&address) && error.contains("forebay serve"), "{error}");
    }
    let output = forebay(&["--control", &address, "--json", "status"]);
    assert_eq!(object(&output.stderr)["error"]["kind"], "disconnected");
}

#[test]
fn doctor_looks_at_everything() {
    let output = forebay(&["doctor", "--json", "--state-dir", "/tmp"]);
    assert_eq!(code(&output), 0);
    let report = object(&output.stdout);
    let findings = report["findings"].as_array().expect("a list");
    let mut names = Vec::new();
    for finding in findings {
        let state = finding["state"].as_str().expect("a state");
        assert!(["ok", "warn", "missing"].contains(&state), "{finding}");
        assert!(!finding["found"].as_str().expect("text").is_empty(), "{finding}");
        assert_eq!(finding["advice"].is_string(), state != "ok", "{finding}");
        names.push(finding["name"].as_str().expect("a name"));
    }
    for name in [
        "kernel",
        "cores",
        "crc32c",
        "io_uring",
        "direct I/O",
        "NVMe",
        "huge pages",
        "locked memory",
        "open files",
        "VFIO",
        "RDMA devices",
        "RDMA libraries",
        "CUDA",
        "GPUDirect RDMA",
        "GPU, staged",
        "cuFile",
        "GPU, host",
        "loopback",
    ] {
        assert!(names.contains(&name), "{name} was not looked at");
    }
    // What another run finds may differ: how busy the machine is, how much room is left.
    let human = forebay(&["doctor", "--color", "never"]);
    let human = text(&human.stdout);
    let bad = |line: &&str| line.starts_with("warn ") || line.starts_with("missing ");
    assert_eq!(human.matches("→ ").count(), human.lines().filter(bad).count(), "{human}");
    assert!(human.lines().filter(|line| line.starts_with("ok ")).count() > 0, "{human}");
    let colored = forebay(&["doctor", "--color", "always"]);
    assert!(text(&colored.stdout).contains("\u{1b}["));
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = forebay(&["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(text(&output.stdout).contains("promote"), "{shell}");
    }
}

fn check(directory: &Path, config: &str, more: &[&str]) -> Output {
    let path = directory.join("forebay.toml");
    std::fs::write(&path, config).expect("written");
    let state = directory.join("state");
    let (path, state) = (path.to_str().expect("plain"), state.to_str().expect("plain"));
    forebay(&[&["serve", "--check", "--config", path, "--state-dir", state], more].concat())
}

#[test]
fn a_configuration_is_checked_without_starting() {
    let directory = tempfile::tempdir().expect("a directory");
    let silo = directory.path().join("silo");
    std::fs::create_dir(&silo).expect("made");
    let config = format!("[silo.data]\nkind = \"directory\"\npath = {silo:?}\n");
    let output = check(directory.path(), &config, &["--json"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let plan = object(&output.stdout);
    assert_eq!(plan["ok"], true);
    assert_eq!(plan["silos"][0], "data");
    assert!(plan["devices"][0]["create_bytes"].as_u64().expect("a size") >= 256 << 20);
    assert!(!directory.path().join("state").exists(), "nothing was made");

    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    let address = busy.local_addr().expect("bound").to_string();
    let output = check(directory.path(), &config, &["--json", "--listen", &address]);
    assert_eq!(object(&output.stdout)["in_use"][0], address);

    let state = directory.path().join("state");
    let inside = state.join("deep");
    std::fs::create_dir_all(&inside).expect("made");
    let silo_at = |path: &Path| format!("[silo.more]\nkind = \"directory\"\npath = {path:?}\n");
    let device = |path: &str, size: &str| {
        let path = directory.path().join(path);
        format!("[[device]]\npath = {path:?}\nsize = {size:?}\n")
    };
    let cases = [
        (format!("{config}{}", silo_at(&silo)), 2, "files in common"),
        (format!("{config}{}", silo_at(&inside)), 2, "one in the other"),
        (silo_at(directory.path()), 2, "one in the other"),
        (device("none/x.img", "1GiB"), 3, "there is no directory"),
        (device("x.img", "900TiB"), 7, "give it less"),
        ("[node]\nsocket = \"\"\n".to_owned(), 2, "socket is empty"),
    ];
    for (config, status, why) in cases {
        let output = check(directory.path(), &config, &[]);
        let error = text(&output.stderr);
        assert_eq!((code(&output), error.contains(why)), (status, true), "{config}: {error}");
    }
    std::fs::remove_dir_all(&state).expect("removed");

    let output = check(directory.path(), "[node]\nshard = 2\n", &[]);
    assert_eq!(code(&output), 2);
    let error = text(&output.stderr);
    assert!(
        error.contains("forebay.toml:2: unknown key \"shard\"; did you mean \"shards\"?"),
        "{error}"
    );

    let output = check(directory.path(), "", &["--listen", "0.0.0.0:0"]);
    assert_eq!(code(&output), 10);
    assert!(text(&output.stderr).contains("--insecure"));

    let output = check(directory.path(), "[silo.data]\nkind = \"tape\"\n", &[]);
    assert_eq!(code(&output), 2);
}

#[test]
fn a_tier_is_not_formatted_by_accident() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tier.img");
    let path = path.to_str().expect("plain");
    assert_eq!(code(&forebay(&["tier", "format", path])), 3, "no file, and no size for one");
    let output = forebay(&["--json", "tier", "format", path, "--size", "64MiB"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let tier = object(&output.stdout)["tier"].as_str().expect("an id").to_owned();
    let inspection = object(&forebay(&["--json", "tier", "inspect", path]).stdout);
    assert_eq!(inspection["tier"], tier.as_str());
    let again = forebay(&["tier", "format", path]);
    assert_eq!(code(&again), 10);
    assert!(text(&again.stderr).contains("--force"));
    assert_eq!(code(&forebay(&["tier", "format", path, "--force"])), 0);

    let strange = directory.path().join("strange");
    std::fs::write(&strange, vec![b'x'; 64 << 20]).expect("written");
    let strange = strange.to_str().expect("plain");
    assert_eq!(code(&forebay(&["tier", "inspect", strange])), 3, "no tier");
    assert_eq!(code(&forebay(&["tier", "format", strange])), 10, "no tier, but not empty");
}

#[test]
fn the_demo_refuses_to_begin_what_cannot_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let empty = directory.path().join("empty");
    std::fs::create_dir(&empty).expect("made");
    let output = forebay(&["demo", empty.to_str().expect("plain")]);
    assert_eq!(code(&output), 3, "nothing to show");

    let full = directory.path().join("full");
    std::fs::create_dir(&full).expect("made");
    std::fs::write(full.join("file"), vec![1; 1000]).expect("written");
    let scratch = directory.path().join("scratch");
    std::fs::create_dir(&scratch).expect("made");
    let output = forebay(&[
        "demo",
        full.to_str().expect("plain"),
        "--checkpoint",
        "1000TiB",
        "--scratch",
        scratch.to_str().expect("plain"),
    ]);
    assert_eq!(code(&output), 7, "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("of disk at"));
    let left: Vec<_> = std::fs::read_dir(&scratch).expect("there").collect();
    assert!(left.is_empty(), "{left:?}");
}
