//! `forebay demo`: the whole life of files on one machine, with real files, and every byte compared.

mod checkpoint;
mod interrupt;
mod node;
mod reader;
mod recall;
mod report;
mod room;
mod scratch;
mod source;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use client::Endpoint;
use extent::{Error, FileName, Kind, Result};
use node::{Ready, Recipe};
use parking_lot::Mutex;
use reader::{Corpus, Reader, Reading};
use report::Report;
use scratch::{Guard, Scratch};
use source::{Source, SourceFile};
use tokio::runtime::Runtime;

use crate::cli::DemoArgs;
use crate::commands::watch;
use crate::output::{Output, Tone};
use crate::progress::Meter;
use crate::remote::{Remote, Target, Targets, outcome};
use crate::{clock, units};

const SOURCE: &str = "source";
const OUTBOX: &str = "outbox";
const CHECKPOINT: &str = "checkpoint.bin";
/// Files named in one promote.
const TARGETS: usize = 1000;

/// Runs the demo.
///
/// # Errors
/// [`Kind::NoSpace`] on a machine with too little disk or memory; [`Kind::Corrupt`] if any byte
/// differed; what any step says.
pub(crate) fn run(args: &DemoArgs, output: Output) -> Result<()> {
    let source = Source::choose(args.directory.as_deref(), args.limit.0)?;
    let place = Arc::new(Mutex::new(None));
    interrupt::clear_on_signals(Arc::clone(&place))?;
    // Signals are caught before anything is made, and wait until it is known.
    let mut held = place.lock();
    let scratch = held.insert(Scratch::new(args.scratch.as_deref())?).clone();
    drop(held);
    let guard = Guard(&scratch);
    let shown = Demo::new(&source, args, &scratch, output).and_then(Demo::run);
    scratch.yield_to_interrupt();
    let closed = scratch.close();
    drop(guard);
    let report = shown?;
    closed?;
    finish(&report, output)
}

fn finish(report: &Report, output: Output) -> Result<()> {
    if output.is_json() {
        output.json(&report.json())?;
    } else {
        output.line(format!("\n{}", report.text()))?;
    }
    if report.mismatches() == 0 {
        return Ok(());
    }
    Err(Kind::Corrupt.error(format!(
        "{} differ from their originals, among them {}",
        units::plural(report.mismatches(), "piece"),
        report.mismatched().join(", ")
    )))
}

/// A demo under way.
struct Demo<'a> {
    source: &'a Source,
    outbox: PathBuf,
    checkpoint: Vec<SourceFile>,
    recipe: Recipe,
    scratch: &'a Scratch,
    runtime: Runtime,
    output: Output,
    report: Report,
}

impl<'a> Demo<'a> {
    fn new(
        source: &'a Source,
        args: &DemoArgs,
        scratch: &'a Scratch,
        output: Output,
    ) -> Result<Self> {
        let outbox = scratch.path().join(OUTBOX);
        fs::create_dir(&outbox).map_err(|e| Error::io("making the second silo", e))?;
        let checkpoint_bytes = args.checkpoint.0.max(1);
        let recipe = Recipe {
            source: source.directory.clone(),
            outbox: outbox.clone(),
            state: scratch.path().join("state"),
            tier_bytes: room::tier_bytes(source, checkpoint_bytes),
        };
        room::check_room(scratch.path(), recipe.tier_bytes, checkpoint_bytes)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting the event loop", e))?;
        let files = source.files.len() as u64;
        let report = Report::new(files, source.bytes(), checkpoint_bytes);
        let checkpoint = vec![SourceFile { key: CHECKPOINT.to_owned(), length: checkpoint_bytes }];
        Ok(Self { source, outbox, checkpoint, recipe, scratch, runtime, output, report })
    }

    fn run(mut self) -> Result<Report> {
        self.say(&format!(
            "{} of {} in {}, which is only read",
            units::bytes(self.source.bytes()),
            units::plural(self.source.files.len() as u64, "file"),
            self.source.directory.display()
        ));
        self.say(&format!("a node with a tier of {}", units::bytes(self.recipe.tier_bytes)));
        let ready = node::start(&self.recipe, self.scratch)?;
        let remote = self.connect(&ready)?;
        let mut local = Reader::connect(&Endpoint::Unix(ready.socket.clone()))?;
        let tcp = Endpoint::Tcp(ready.listen.clone());
        self.promote(&remote)?;
        self.read(report::READ_SHM, &mut local, self.source_corpus())?;
        self.read(report::READ_TCP, &mut Reader::connect(&tcp)?, self.source_corpus())?;
        self.write_checkpoint(&local)?;
        self.measure_space(&remote)?;
        self.demote_checkpoint(&remote)?;
        self.recall(&remote, &mut local, &tcp)?;
        drop((local, remote));
        self.restart()?;
        Ok(self.report)
    }

    fn say(&self, text: &str) {
        self.output.note(self.output.paint(Tone::Faint, &format!("· {text}")));
    }

    fn connect(&self, ready: &Ready) -> Result<Remote> {
        self.runtime.block_on(Remote::connect(&ready.control))
    }

    fn source_corpus(&self) -> Corpus<'a> {
        let source = self.source;
        Corpus { silo: SOURCE, directory: &source.directory, files: &source.files }
    }

    fn promote(&mut self, remote: &Remote) -> Result<()> {
        self.say("promote: silo → tier");
        let begin = clock::now();
        for files in self.source.files.chunks(TARGETS) {
            let targets: Targets =
                files.iter().map(|file| Target::File(name(SOURCE, &file.key), None)).collect();
            let job = self.runtime.block_on(async {
                let job = remote.promote(targets, false, None).await?;
                watch(remote, &job, self.output).await
            })?;
            outcome(&job)?;
        }
        self.report.moved(report::PROMOTE, self.source.bytes(), begin.elapsed(), "silo → tier");
        Ok(())
    }

    fn read(&mut self, step: &'static str, reader: &mut Reader, corpus: Corpus<'_>) -> Result<()> {
        self.say(&format!("{step}: every byte compared"));
        let reading = self.read_all(reader, corpus)?;
        self.report.read(step, &reading);
        Ok(())
    }

    fn read_all(&self, reader: &mut Reader, corpus: Corpus<'_>) -> Result<Reading> {
        let total: u64 = corpus.files.iter().map(|file| file.length).sum();
        let mut meter = Meter::new(self.output, "reading");
        let never = AtomicBool::new(false);
        let reading =
            reader.read_back(corpus, &never, &mut |done| meter.update(done, total, ""))?;
        meter.finish();
        if reading.bytes == total {
            return Ok(reading);
        }
        Err(Kind::Corrupt.error(format!("{} of {total} bytes came back", reading.bytes)))
    }

    fn write_checkpoint(&mut self, local: &Reader) -> Result<()> {
        let length = self.report.checkpoint_bytes;
        self.say(&format!("checkpoint: {} written and committed", units::bytes(length)));
        let mut meter = Meter::new(self.output, "writing");
        let name = FileName::new(OUTBOX, CHECKPOINT)?;
        let busy = checkpoint::write(local.client(), &name, length, &mut |done| {
            meter.update(done, length, "");
        })?;
        meter.finish();
        self.report.moved("checkpoint, committed", length, busy, "client → tier");
        Ok(())
    }

    /// With everything on the node: what slots take, and what is in them.
    fn measure_space(&mut self, remote: &Remote) -> Result<()> {
        let status = self.runtime.block_on(remote.status())?;
        self.report.space = (status.slot_bytes, status.resident_bytes);
        Ok(())
    }

    fn demote_checkpoint(&mut self, remote: &Remote) -> Result<()> {
        self.say("demote: tier → second silo, verified, released; the copy compared");
        let length = self.report.checkpoint_bytes;
        let begin = clock::now();
        let target = Target::File(name(OUTBOX, CHECKPOINT), None);
        let job = self.runtime.block_on(async {
            let job = remote.demote(vec![target]).await?;
            watch(remote, &job, self.output).await
        })?;
        outcome(&job)?;
        self.report.moved("demote, verified", length, begin.elapsed(), "tier → silo");
        let different = checkpoint::compare(&self.outbox.join(CHECKPOINT), length)?;
        self.report.compared("the silo's copy of the checkpoint", length, different);
        Ok(())
    }

    /// Lets go of a part and reads it again while others read the rest; the demoted checkpoint too.
    fn recall(&mut self, remote: &Remote, local: &mut Reader, tcp: &Endpoint) -> Result<()> {
        let (released, rest) = recall::split(&self.source.files);
        self.say(&format!(
            "recall: {} released and read again, while others read",
            units::plural(released.len() as u64, "file")
        ));
        for file in &released {
            let target = Target::File(name(SOURCE, &file.key), None);
            self.runtime.block_on(remote.release(target))?;
        }
        let corpus = |files| Corpus { files, ..self.source_corpus() };
        let (reading, others) =
            recall::among_readers(tcp, corpus(&rest), || self.read_all(local, corpus(&released)))?;
        if reading.recalls == 0 {
            return Err(Kind::Corrupt.error("released files were read without a recall"));
        }
        self.report.read("recall", &reading);
        self.report.read("… and others beside", &others);
        let corpus = Corpus { silo: OUTBOX, directory: &self.outbox, files: &self.checkpoint };
        let reading = self.read_all(local, corpus)?;
        self.report.read("recall of the checkpoint", &reading);
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.say("restart: the process ends and another takes over the tier");
        node::stop(self.scratch)?;
        let begin = clock::now();
        let ready = node::start(&self.recipe, self.scratch)?;
        self.report.restarts += 1;
        self.say(&format!("serving again after {:.1} s", begin.elapsed().as_secs_f64()));
        let mut local = Reader::connect(&Endpoint::Unix(ready.socket))?;
        self.read("read after restart", &mut local, self.source_corpus())?;
        drop(local);
        node::stop(self.scratch)
    }
}

fn name(silo: &str, key: &str) -> String {
    format!("{silo}/{key}")
}
