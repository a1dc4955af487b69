//! `forebay`: the node, and the tool that drives it.

mod bench;
mod cli;
mod clock;
mod commands;
mod config;
mod demo;
mod doctor;
mod exit;
mod logs;
mod metrics;
mod notify;
mod output;
mod progress;
mod remote;
mod render;
mod serve;
mod system;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use extent::{Kind, Result};

const _: () = assert!(
    !nvme_tier::SEEDED_BUGS && !rdma::SEEDED_BUGS && !client::SEEDED_BUGS,
    "a node is never built with the mistakes that tests make on purpose"
);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let output = cli.global.output();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(exit::code(error.kind()))
        }
    }
}

/// A command line that makes no sense, or one that asks for help.
fn refuse(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && json {
        let text = error.render().to_string();
        let text = text.trim_start_matches("error: ").trim_end();
        output::Output::new(true, output::Colour::Never).error(&Kind::Invalid.error(text));
    } else {
        // Nothing is left to do if this cannot be printed.
        let _ = error.print();
    }
    if error.use_stderr() { ExitCode::from(exit::code(Kind::Invalid)) } else { ExitCode::SUCCESS }
}

fn run(cli: Cli) -> Result<()> {
    let output = cli.global.output();
    let Cli { global, command } = cli;
    if !matches!(command, Command::Serve(_)) {
        logs::start(global.verbose, "warn", false)?;
    }
    match command {
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "forebay", &mut script);
            output.line(String::from_utf8_lossy(&script).trim_end())
        }
        Command::Serve(args) => serve::run(&args, &global),
        Command::Tier(command) => commands::tier(command, output),
        Command::Device(command) => commands::device(command, output),
        Command::Bench(args) => bench::run(&args, &global),
        Command::Demo(args) => demo::run(&args, output),
        command => commands::block_on(async {
            let remote = remote::Remote::connect(&global.control()).await?;
            drive(&remote, command, output).await
        }),
    }
}

/// Commands that a running node carries out.
async fn drive(remote: &remote::Remote, command: Command, output: output::Output) -> Result<()> {
    match command {
        Command::Promote(args) => commands::promote(remote, args, output).await,
        Command::Demote(args) => commands::demote(remote, args, output).await,
        Command::Writeback(args) => commands::writeback(remote, args, output).await,
        Command::Release(args) => commands::release(remote, args, output).await,
        Command::Resolve(args) => commands::resolve(remote, args, output).await,
        Command::Pin(args) => commands::pin(remote, args, output).await,
        Command::Unpin(args) => commands::unpin(remote, args, output).await,
        Command::Register(args) => commands::register(remote, args, output).await,
        Command::Ls(args) => commands::list(remote, args, output).await,
        Command::Stat(args) => commands::stat(remote, args, output).await,
        Command::Jobs(command) => commands::jobs(remote, command, output).await,
        Command::Status => commands::status(remote, output).await,
        Command::Scrub(args) => commands::scrub(remote, &args, output).await,
        Command::Session(command) => commands::session(remote, command, output).await,
        Command::Silo(command) => commands::silo(remote, command, output).await,
        _ => unreachable!("run() carries out the others itself"),
    }
}
