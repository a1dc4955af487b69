//! Programs in C against a real node, by the header and the libraries that they are given: plainly, and
//! under valgrind.

#[expect(dead_code, reason = "other tests need all of it")]
mod node;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use node::{Directories, Node};

/// What all of it is compiled with.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
/// What is possibly lost is not: hash tables are known by a pointer to their middle, and a child process
/// ends with its parent's ring open.
const VALGRIND: [&str; 7] = [
    "valgrind",
    "--quiet",
    "--error-exitcode=9",
    "--leak-check=full",
    "--show-leak-kinds=definite",
    "--errors-for-leak-kinds=definite",
    "--num-callers=40",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The libraries were built for this test, into the directory that it is in.
fn libraries() -> PathBuf {
    let program = std::env::current_exe().expect("this program");
    program.parent().expect("its directory").to_path_buf()
}

fn compiler(arguments: &[&str], source: &Path) -> Command {
    let mut cc = Command::new("cc");
    cc.args(arguments).args(STRICT).arg("-I").arg(root().join("client/include")).arg(source);
    cc
}

fn run(mut command: Command) {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
}

/// Compiles a program against the shared library, or the static one.
fn compiled(source: &str, into: &Path, is_static: bool) -> PathBuf {
    let source = root().join(source);
    let name = source.file_stem().and_then(OsStr::to_str).expect("a name");
    let program = into.join(format!("{name}{}", if is_static { "-static" } else { "" }));
    let mut cc = compiler(&["-std=c11", "-g", "-pthread"], &source);
    cc.arg("-o").arg(&program);
    if is_static {
        cc.arg(libraries().join("libforebay.a")).args(["-lm", "-ldl"]);
    } else {
        let place = libraries().display().to_string();
        cc.arg(format!("-L{place}")).arg("-lforebay").arg(format!("-Wl,-rpath,{place}"));
    }
    run(cc);
    program
}

fn has_valgrind() -> bool {
    let asked = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// A node with a file, of which there is a copy.
fn directories() -> (Directories, PathBuf) {
    let directories = Directories::new();
    let bytes: Vec<u8> = (0..5_000_001u32).flat_map(|i| (i % 1009).to_le_bytes()).collect();
    let path = directories.data().join("f");
    fs::write(&path, &bytes[..5_000_001]).expect("written");
    let copy = directories.path().join("copy");
    fs::copy(&path, &copy).expect("copied");
    (directories, copy)
}

fn command(prefix: &[&str], program: &Path) -> Command {
    match prefix {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// Does with the node what a program asks for, until that ends.
fn attend(mut program: Command, directories: &Directories, node: Node) {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut answers = child.stdin.take().expect("a pipe");
    let mut node = Some(node);
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("text");
        match line.as_str() {
            "pause" => node.as_ref().expect("it runs").pause(),
            "resume" => node.as_ref().expect("it runs").signal("CONT"),
            "kill" => node.take().expect("it runs").kill(),
            "start" => node = Some(Node::start(directories)),
            _ => continue,
        }
        writeln!(answers, "done").expect("it listens");
    }
    let status = child.wait().expect("it ended");
    assert!(status.success(), "{status}");
}

fn misuse(prefix: &[&str]) {
    let (directories, copy) = directories();
    let program = compiled("client/capi/tests/abi.c", directories.path(), false);
    let node = Node::start(&directories);
    let mut command = command(prefix, &program);
    let endpoints = [format!("unix:{}", node.socket()), format!("tcp://{}", node.listen())];
    command.args(endpoints).arg("data/f").arg(copy);
    attend(command, &directories, node);
}

fn example(prefix: &[&str], is_static: bool) {
    let (directories, copy) = directories();
    let program = compiled("client/examples/read_file.c", directories.path(), is_static);
    let node = Node::start(&directories);
    for (endpoint, way) in [
        (format!("unix:{}", node.socket()), "TCP 0"),
        (format!("tcp://{}", node.listen()), "device 0, processor 0, RDMA 0, TCP"),
    ] {
        let mut command = command(prefix, &program);
        let output = command.arg(endpoint).arg("data/f").arg(&copy).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaints}", output.status);
        assert!(
            said.starts_with("5000001 bytes, all as in the copy") && said.contains(way),
            "{said}"
        );
    }
}

#[test]
fn c_and_cpp_take_the_header() {
    for source in ["client/capi/tests/abi.c", "client/examples/read_file.c"] {
        let source = root().join(source);
        run(compiler(&["-std=c11", "-fsyntax-only"], &source));
        run(compiler(&["-std=c++17", "-fsyntax-only", "-x", "c++"], &source));
    }
    run(compiler(
        &["-std=c99", "-fsyntax-only", "-x", "c"],
        &root().join("client/include/forebay.h"),
    ));
}

#[test]
fn misuse_is_refused_and_costs_nothing() {
    misuse(&[]);
}

#[test]
fn the_example_reads_by_either_library() {
    example(&[], false);
    example(&[], true);
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn valgrind_finds_nothing() {
    if !has_valgrind() {
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    misuse(&VALGRIND);
    example(&VALGRIND, false);
}
