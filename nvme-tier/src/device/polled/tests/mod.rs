mod advice;
mod hardware;
mod limits;
mod misbehaviour;
mod model;

use std::sync::Arc;
use std::time::Duration;

use dma::{HugePages, Pool, SizeClass, Source, Target};
use extent::Result;

use self::model::{Behaviour, Model};
use super::{Controller, ControllerOptions, PolledQueue};
use crate::clock;
use crate::device::{Command, Completion, DeviceIndex, Geometry, Location, Timeouts, Token};

const ZERO: DeviceIndex = DeviceIndex(0);

/// No test needs this long; one that hangs ends with it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A controller's model and one queue onto it.
struct Rig {
    model: Arc<Model>,
    controller: Arc<Controller>,
    queue: PolledQueue,
    pool: Pool,
}

/// Only what swallows commands has to wait for their time to be over; everything else may take as
/// long as a busy machine takes.
fn options(behaviour: &Behaviour) -> ControllerOptions {
    ControllerOptions {
        tick: Duration::from_millis(2),
        abort_ticks: if behaviour.swallow > 0 { 50 } else { 10_000 },
        reset_ticks: if behaviour.swallow > 0 { 100 } else { 20_000 },
        admin_limit: if behaviour.mute { Duration::from_millis(100) } else { PATIENCE },
        ..ControllerOptions::of(&Timeouts::default())
    }
}

fn open(behaviour: Behaviour) -> Result<(Arc<Model>, Arc<Controller>)> {
    let options = options(&behaviour);
    let model = Model::start(behaviour);
    let host: Arc<dyn super::Host> = Arc::clone(&model) as _;
    Ok((model, Controller::open(host, &Arc::default(), options)?))
}

fn queue(controller: &Arc<Controller>, depth: usize) -> Result<PolledQueue> {
    let (nsid, identity) = controller.namespace(None)?;
    let geometry = Geometry {
        capacity_bytes: identity.capacity_bytes(),
        block_bytes: identity.unit_bytes(),
        max_transfer_bytes: 1 << 20,
        volatile_cache: controller.has_volatile_cache()?,
        deallocation: controller.deallocator(&identity).map(|told| told.deallocation()),
    };
    PolledQueue::new(controller, (nsid, &identity), geometry, false, depth)
}

impl Rig {
    fn new(behaviour: Behaviour, depth: usize) -> Self {
        let (model, controller) = open(behaviour).expect("comes up");
        let queue = queue(&controller, depth).expect("a queue");
        let sizes = [SizeClass { bytes: 256 << 10, count: 16 }];
        Self {
            model,
            controller,
            queue,
            pool: Pool::new(&sizes, HugePages::Never).expect("memory"),
        }
    }

    /// A command to write or to read `length` bytes, all of which are `mark` when they are written.
    fn write(&self, offset: u64, length: usize, mark: u8) -> Command {
        let mut buffer = self.pool.take(length).expect("a buffer");
        buffer.as_mut_slice()[..length].fill(mark);
        let at = Location { device: ZERO, offset };
        Command::Write { at, from: Source::Buffer(buffer, 0..length) }
    }

    fn read(&self, offset: u64, length: usize) -> Command {
        let buffer = self.pool.take(length).expect("a buffer");
        let at = Location { device: ZERO, offset };
        Command::Read { at, into: Target::Buffer(buffer, 0..length) }
    }

    fn submit(&mut self, token: u64, command: Command) {
        self.queue.submit(Token(token), command).expect("room in the queue");
    }

    /// Polls until nothing is in flight.
    fn drain(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        let begin = clock::now();
        while self.queue.in_flight() > 0 {
            self.queue.kick();
            self.queue.poll(&mut done);
            assert!(begin.elapsed() < PATIENCE, "{} never end", self.queue.in_flight());
            std::thread::yield_now();
        }
        done
    }

    fn one(&mut self, command: Command) -> Completion {
        self.submit(1, command);
        self.drain().remove(0)
    }

    fn wait_until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let begin = clock::now();
        while !reached(self) {
            self.queue.poll(&mut Vec::new());
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            std::thread::yield_now();
        }
    }
}

/// What a read has brought.
fn bytes(completion: Completion) -> Vec<u8> {
    completion.result.expect("read");
    let Command::Read { into: Target::Buffer(buffer, range), .. } = completion.command else {
        panic!("not a read into a buffer");
    };
    buffer.as_slice()[range].to_vec()
}
