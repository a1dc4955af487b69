//! A node's process, for tests.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes even on a slow machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the tool.
pub(crate) fn forebay(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("the program runs")
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    for name in
        ["FOREBAY_CONTROL", "FOREBAY_PROOF", "FOREBAY_CONFIG", "FOREBAY_LOG", "NOTIFY_SOCKET"]
    {
        command.env_remove(name);
    }
    command
}

/// Waits until something holds.
#[expect(clippy::disallowed_methods, reason = "a failure has to end somewhere")]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "in vain: {what}");
        thread::yield_now();
    }
}

/// Where a node's things are.
pub(crate) struct Directories(tempfile::TempDir);

impl Directories {
    pub(crate) fn new() -> Self {
        let directories = Self(tempfile::tempdir().expect("a directory"));
        fs::create_dir(directories.data()).expect("made");
        fs::create_dir(directories.out()).expect("made");
        directories.configure("");
        directories
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.path().join("out")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    fn config(&self) -> PathBuf {
        self.path().join("forebay.toml")
    }

    /// Writes the configuration, with more keys for the silo `data`.
    pub(crate) fn configure(&self, more: &str) {
        self.configure_tier("", more);
    }

    /// The same with more keys for the tier, and sections behind it.
    pub(crate) fn configure_tier(&self, tier: &str, more: &str) {
        let text = format!(
            "[node]\nstate_dir = {:?}\nshards = 1\nbuffers_bytes = \"32MiB\"\n\
             listen = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\n\
             [tier]\nscrub_every = \"off\"\n{tier}\n\
             [silo.data]\nkind = \"directory\"\npath = {:?}\nquiet_s = 0.0\n{more}\n\
             [silo.out]\nkind = \"directory\"\npath = {:?}\nquiet_s = 0.0\n",
            self.state(),
            self.data(),
            self.out()
        );
        fs::write(self.config(), text).expect("written");
    }
}

/// A node that runs until this is dropped.
pub(crate) struct Node {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) ready: Value,
}

impl Node {
    /// How a node is started.
    pub(crate) fn command(directories: &Directories) -> Command {
        let mut command = command();
        command.args(["serve", "--json", "--control", "127.0.0.1:0", "--tier-size", "256MiB"]);
        command.arg("--config").arg(directories.config());
        command
    }

    /// Starts one and waits until it serves.
    pub(crate) fn start(directories: &Directories) -> Self {
        Self::spawn(Self::command(directories))
    }

    /// Starts one as told and waits until it serves.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("it runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("readable");
        let ready = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { child, stdout, ready }
    }

    fn address(&self, key: &str) -> &str {
        self.ready[key].as_str().expect("an address")
    }

    pub(crate) fn listen(&self) -> &str {
        self.address("listen")
    }

    pub(crate) fn socket(&self) -> &str {
        self.address("socket")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(None, arguments)
    }

    /// Runs the tool against it, with a proof in the environment.
    pub(crate) fn run_with(&self, proof: Option<&str>, arguments: &[&str]) -> Output {
        let mut command = command();
        command.args(["--json", "--control", self.address("control")]).args(arguments);
        if let Some(proof) = proof {
            command.env("FOREBAY_PROOF", proof);
        }
        command.output().expect("the program runs")
    }

    /// Runs the tool against it, and expects a result.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Runs the tool against it, and expects to be refused. The exit status.
    pub(crate) fn refused(&self, arguments: &[&str]) -> i32 {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} was done");
        output.status.code().expect("not killed")
    }

    /// What it answers to a GET.
    pub(crate) fn http(&self, target: &str) -> String {
        let mut stream = TcpStream::connect(self.address("metrics")).expect("it listens");
        write!(stream, "GET {target} HTTP/1.1\r\nHost: node\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        answer
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Stops it for now: once this returns, it answers nothing. A signal is sent before each thread has taken it.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        eventually("all of its threads stopped", || {
            fs::read_dir(&tasks).expect("it is there").all(|task| {
                let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
                // A thread that has ended meanwhile answers nothing either.
                let state = |stat: String| stat.rsplit(") ").next().map(|it| it.starts_with('T'));
                stat.map_or(true, |stat| state(stat) == Some(true))
            })
        });
    }

    /// Asks it to stop; what it says last.
    pub(crate) fn stop(mut self) -> Value {
        self.signal("TERM");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("readable");
        let status = self.child.wait().expect("it ended");
        assert!(status.success(), "{status}: {rest}");
        serde_json::from_str(rest.trim()).unwrap_or_else(|e| panic!("{e}: {rest:?}"))
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it ran");
        self.child.wait().expect("it ended");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
