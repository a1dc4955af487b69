//! What all queues of a controller share, and how it is brought up, reset and shut down (Base 3.5
//! and 3.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use extent::{Error, Kind, Result};
use parking_lot::Mutex;

use super::admin::AdminQueue;
use super::doorbell::ShadowDoorbells;
use super::features::{self, QueuePlace};
use super::goal::Goal;
use super::life::Life;
use super::{ControllerOptions, Host, Registers};
use crate::clock;
use crate::device::nvme::{
    Capabilities, CommandSetLimits, Configuration, ControllerStatus, Deallocator, Health,
    IdentifyController, IdentifyNamespace, PAGE_BYTES, Status, offset,
};

/// How long a normal shutdown may take.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(200);

/// The longest that a command waits to be sent again, whatever its controller asks for.
const MOST_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Aborts that may wait to be sent; one too many is asked for again a tick later.
const MOST_ABORTS: usize = 64;

/// Ticks in a minute, at the pace that hardware is watched at.
const MINUTE_TICKS: u32 = 600;

/// No life that there is.
const NO_RESET: u32 = u32::MAX;

fn gone() -> Error {
    Kind::Io.error("its registers read as ones: is it still plugged in?")
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) host: Arc<dyn Host>,
    pub(super) registers: Registers,
    pub(super) capabilities: Capabilities,
    pub(super) options: ControllerOptions,
    life: AtomicU32,
    /// Counts up at an even pace; what the age of commands is measured by.
    ticks: AtomicU32,
    admin: Mutex<AdminQueue>,
    about: Mutex<About>,
    pub(super) doorbells: Option<ShadowDoorbells>,
    uses_doorbells: AtomicBool,
    /// Which queue ids are taken; the first is the admin queue's.
    queue_ids: Mutex<Vec<bool>>,
    aborts: ArrayQueue<(Life, u16, u16)>,
    /// The life that is to end with a reset.
    reset_wanted: AtomicU32,
    /// When it was reset of late.
    resets: Mutex<Vec<u32>>,
    /// Namespaces in use, as they were when they were opened.
    namespaces: Mutex<Vec<(u32, IdentifyNamespace)>>,
    death: Mutex<Option<String>>,
}

/// What it said of itself.
#[derive(Debug, Default)]
struct About {
    identity: Option<IdentifyController>,
    limits: CommandSetLimits,
    health: Option<Health>,
}

impl Core {
    /// Resets and enables a controller, and gets to know it.
    ///
    /// # Errors
    /// [`Kind::Io`] if it does not come up; [`Kind::Corrupt`] if it says what cannot be;
    /// [`Kind::Unsupported`] if it lacks what this driver needs; [`Kind::NoSpace`] for want of memory.
    pub(super) fn open(host: Arc<dyn Host>, options: ControllerOptions) -> Result<Arc<Self>> {
        let registers = host.registers();
        let capabilities = Capabilities(registers.read_u64(offset::CAP));
        if capabilities.0 == u64::MAX {
            return Err(gone());
        }
        if !capabilities.has_nvm_command_set() || capabilities.most_queue_entries() < 2 {
            return Err(Kind::Corrupt.error(format!(
                "it reports capabilities of {:016x}h, without the NVM command set or queues: is it an \
                 NVMe controller?",
                capabilities.0
            )));
        }
        if capabilities.least_page_bytes() > PAGE_BYTES as u64 {
            return Err(Kind::Unsupported.error(format!(
                "it works with pages of at least {} bytes, this driver with {PAGE_BYTES}",
                capabilities.least_page_bytes()
            )));
        }
        let core = Self {
            admin: Mutex::new(AdminQueue::new(&host, capabilities, options.admin_limit)?),
            doorbells: if options.shadow_doorbells {
                Some(ShadowDoorbells::new(&host)?)
            } else {
                None
            },
            uses_doorbells: AtomicBool::new(false),
            host,
            registers,
            capabilities,
            options,
            life: AtomicU32::new(Life::new(0, Life::RESETTING).0),
            ticks: AtomicU32::new(0),
            about: Mutex::default(),
            queue_ids: Mutex::new(vec![true]),
            aborts: ArrayQueue::new(MOST_ABORTS),
            reset_wanted: AtomicU32::new(NO_RESET),
            resets: Mutex::default(),
            namespaces: Mutex::default(),
            death: Mutex::new(None),
        };
        // A doorbell for the admin queue and one I/O queue at least.
        if core.most_queues() == 0 {
            return Err(Kind::Corrupt.error(format!(
                "its doorbells are {} bytes apart, and its registers have no room for any",
                capabilities.doorbell_stride()
            )));
        }
        // What is not quiet when this fails must not reach memory that is given back.
        core.start(&mut core.admin.lock()).inspect_err(|_| core.quiet())?;
        core.set_life(Life::new(0, Life::WORKING));
        Ok(Arc::new(core))
    }

    fn start(&self, queue: &mut AdminQueue) -> Result<()> {
        self.disable()?;
        if let Some(doorbells) = &self.doorbells {
            doorbells.clear();
        }
        queue.attach();
        self.registers.write_u32(offset::CC, Configuration::enabled(self.capabilities).0);
        self.wait(self.ready_limit(), Goal::Ready)?;
        let identity = features::identify_controller(queue)?;
        let granted = features::queue_pairs(queue)?;
        let mut ids = self.queue_ids.lock();
        let wanted = usize::from(granted).min(self.most_queues()) + 1;
        if ids.len() < wanted {
            ids.resize(wanted, false);
        }
        drop(ids);
        let shadowed = match &self.doorbells {
            Some(doorbells) if identity.has_doorbell_buffers => {
                features::use_doorbell_buffers(queue, doorbells.iovas())
                    .inspect_err(|error| tracing::warn!(%error, "no shadow doorbells"))
                    .is_ok()
            }
            _ => false,
        };
        self.uses_doorbells.store(shadowed, Ordering::Relaxed);
        if let Err(error) = features::announce_events(queue) {
            tracing::debug!(%error, name = self.host.name(), "events are not announced");
        }
        queue.listen(identity.asynchronous_events);
        let health = features::health(queue)
            .inspect_err(|error| tracing::warn!(%error, "no health log"))
            .ok();
        let limits = features::command_set_limits(queue, &identity);
        if identity.retry_delays != [0; 3]
            && let Err(error) = features::allow_retry_delays(queue)
        {
            tracing::debug!(%error, name = self.host.name(), "no retry delays");
        }
        *self.about.lock() = About { identity: Some(identity), limits, health };
        Ok(())
    }

    /// How many I/O queues have their doorbells in the registers that are mapped.
    fn most_queues(&self) -> usize {
        let room = self.registers.extent().1.saturating_sub(offset::DOORBELLS);
        (room / (2 * self.capabilities.doorbell_stride())).saturating_sub(1)
    }

    /// Clears CC.EN and waits until the controller has stopped.
    fn disable(&self) -> Result<()> {
        let configuration = Configuration(self.registers.read_u32(offset::CC));
        let status = ControllerStatus(self.registers.read_u32(offset::CSTS));
        if status.is_gone() {
            return Err(gone());
        }
        // One that is on its way up may not be turned round before it is there.
        if configuration.is_enabled() && !status.is_ready() && !status.is_fatal() {
            let _or_never = self.wait(self.ready_limit(), Goal::Ready);
        }
        self.registers.write_u32(offset::CC, configuration.disabled().0);
        self.wait(self.ready_limit(), Goal::Stopped)
    }

    /// How long it may take to become ready, or to stop.
    pub(super) fn ready_limit(&self) -> Duration {
        self.options.ready_limit.unwrap_or_else(|| self.capabilities.timeout())
    }

    fn wait(&self, limit: Duration, goal: Goal) -> Result<()> {
        let begin = clock::now();
        loop {
            let status = ControllerStatus(self.registers.read_u32(offset::CSTS));
            if status.is_gone() {
                return Err(gone());
            }
            if goal.is_reached(status) {
                return Ok(());
            }
            let waited = begin.elapsed();
            // For a moment the bit may be left over from before.
            let is_fatal = status.is_fatal() && goal == Goal::Ready && waited > limit / 10;
            if is_fatal || waited > limit {
                let how = if is_fatal { "reports a fatal error" } else { "is not there yet" };
                return Err(Kind::Io.error(format!(
                    "the controller should {} and {how} after {:.1} s (CSTS {:08x}h): give it longer \
                     (ready_timeout), power it off and on, and if that does not help replace it",
                    goal.words(),
                    waited.as_secs_f32(),
                    status.0
                )));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Makes certain that the controller reaches no memory any more, one way or another.
    fn quiet(&self) {
        let gone = ControllerStatus(self.registers.read_u32(offset::CSTS)).is_gone();
        if gone || self.disable().is_ok() {
            return;
        }
        if self.host.reset().is_ok() || self.host.set_bus_master(false).is_ok() {
            return;
        }
        self.host.release();
    }

    /// Resets the controller: what is in flight on any queue is lost, and every queue has to be made
    /// anew. If it does not come up again it is dead.
    pub(super) fn reset(&self, why: &str) {
        let mut queue = self.admin.lock();
        let life = self.life();
        if life.is_dead() {
            return;
        }
        tracing::error!(name = self.host.name(), why, "resetting an NVMe controller");
        self.set_life(Life::new(life.resets(), Life::RESETTING));
        while self.aborts.pop().is_some() {}
        self.quiet();
        let _as_far_as_possible = self.host.set_bus_master(true);
        let started = match self.is_beyond_hope() {
            true => {
                let resets = self.options.resets_per_minute;
                Err(Kind::Io.error(format!("it was reset {resets} times within a minute")))
            }
            false => self.start(&mut queue).and_then(|()| self.compare_namespaces(&mut queue)),
        };
        match started {
            Ok(()) => {
                tracing::warn!(name = self.host.name(), "the NVMe controller is back");
                self.set_life(Life::new(life.resets() + 1, Life::WORKING));
            }
            Err(error) => {
                drop(queue);
                self.die(&format!("it did not come back after a reset ({why}): {error}"));
            }
        }
    }

    /// Notes a reset, and whether there were too many.
    fn is_beyond_hope(&self) -> bool {
        let (mut resets, now) = (self.resets.lock(), self.ticks());
        resets.retain(|then| now.wrapping_sub(*then) < MINUTE_TICKS);
        resets.push(now);
        resets.len() > self.options.resets_per_minute as usize
    }

    /// Whether the namespaces in use are still as they were when they were opened.
    ///
    /// # Errors
    /// [`Kind::Io`] if one was formatted otherwise, shrunk or taken away.
    pub(super) fn compare_namespaces(&self, queue: &mut AdminQueue) -> Result<()> {
        let identity = self.identity();
        for (nsid, before) in self.namespaces.lock().iter() {
            let now = features::identify_namespace(queue, *nsid, &identity)?;
            let is_same = now.block_bytes == before.block_bytes
                && now.protection == before.protection
                && now.blocks >= before.blocks;
            if !is_same {
                return Err(Kind::Io.error(format!(
                    "namespace {nsid} was changed by somebody else, from {} to {} blocks of {} bytes",
                    before.blocks, now.blocks, now.block_bytes
                )));
            }
        }
        Ok(())
    }

    /// The controller is of no more use; from here on all commands fail.
    pub(super) fn die(&self, why: &str) {
        let life = self.life();
        if life.is_dead() {
            return;
        }
        tracing::error!(name = self.host.name(), why, "an NVMe controller is lost");
        *self.death.lock() = Some(why.to_owned());
        self.quiet();
        // Only now: whoever sees it takes the memory of its commands back.
        self.set_life(Life::new(life.resets(), Life::DEAD));
    }

    /// Tells the controller that the power may go (Base 3.6.1), then disables it.
    pub(super) fn shut_down(&self) {
        let status = ControllerStatus(self.registers.read_u32(offset::CSTS));
        if self.life().is_dead() || status.is_gone() {
            return;
        }
        let configuration = Configuration(self.registers.read_u32(offset::CC));
        self.registers.write_u32(offset::CC, configuration.shutting_down().0);
        let done = self.wait(SHUTDOWN_LIMIT, Goal::ShutDown);
        if let Err(error) = done {
            tracing::warn!(name = self.host.name(), %error, "no clean shutdown");
        }
        self.quiet();
    }

    /// Makes a queue pair; in which life.
    ///
    /// # Errors
    /// As the controller answers; [`Kind::Io`] if it does not work just now.
    pub(super) fn create_queues(&self, place: &QueuePlace) -> Result<Life> {
        // A reset holds the same lock from its begin to its end.
        let mut queue = self.admin.lock();
        let life = self.life();
        if life.is_dead() {
            return Err(self.obituary());
        }
        if !life.is_working() {
            return Err(Kind::Io.error(format!("{} is being reset", self.host.name())));
        }
        features::create_queues(&mut queue, place)?;
        Ok(life)
    }

    /// Takes a queue pair away.
    ///
    /// # Errors
    /// As the controller answers; then it may still use the pair's memory.
    pub(super) fn delete_queues(&self, id: u16) -> Result<()> {
        features::delete_queues(&mut self.admin.lock(), id)
    }

    /// An id for a queue pair.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if the controller has no more.
    pub(super) fn take_queue_id(&self) -> Result<u16> {
        let mut ids = self.queue_ids.lock();
        let Some(free) = ids.iter().position(|taken| !taken) else {
            return Err(Kind::NoSpace.error(format!(
                "{} has only {} I/O queues, and one is needed for each shard and one for the \
                 ledger: run fewer shards",
                self.host.name(),
                ids.len() - 1
            )));
        };
        ids[free] = true;
        Ok(u16::try_from(free).expect("ids have 16 bits"))
    }

    pub(super) fn give_queue_id_back(&self, id: u16) {
        self.queue_ids.lock()[usize::from(id)] = false;
    }

    pub(super) fn identity(&self) -> IdentifyController {
        self.about.lock().identity.clone().expect("it was identified when it was opened")
    }

    /// How one of its namespaces is told of blocks that nobody needs, if it takes that.
    pub(super) fn deallocator(&self, namespace: &IdentifyNamespace) -> Option<Deallocator> {
        let about = self.about.lock();
        Deallocator::of(about.identity.as_ref()?, &about.limits, namespace)
    }

    pub(super) fn health(&self) -> Option<Health> {
        self.about.lock().health
    }

    pub(super) fn set_health(&self, health: Health) {
        self.about.lock().health = Some(health);
    }

    /// The namespaces that it has.
    pub(super) fn namespaces(&self) -> Result<Vec<u32>> {
        self.check_alive()?;
        features::namespaces(&mut self.admin.lock())
    }

    pub(super) fn namespace(&self, nsid: u32) -> Result<IdentifyNamespace> {
        self.check_alive()?;
        let identity = self.identity();
        let namespace = features::identify_namespace(&mut self.admin.lock(), nsid, &identity)?;
        let mut namespaces = self.namespaces.lock();
        namespaces.retain(|(known, _)| *known != nsid);
        namespaces.push((nsid, namespace));
        Ok(namespace)
    }

    /// Whether there is a volatile write cache and it is on.
    pub(super) fn write_cache_is_on(&self) -> Result<bool> {
        if !self.identity().has_volatile_cache {
            return Ok(false);
        }
        self.check_alive()?;
        features::write_cache_is_on(&mut self.admin.lock())
    }

    pub(super) fn with_admin<T>(&self, act: impl FnOnce(&mut AdminQueue) -> T) -> T {
        act(&mut self.admin.lock())
    }

    pub(super) fn shadows(&self) -> Option<&ShadowDoorbells> {
        self.doorbells.as_ref().filter(|_| self.uses_doorbells.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn life(&self) -> Life {
        Life(self.life.load(Ordering::Acquire))
    }

    fn set_life(&self, life: Life) {
        self.life.store(life.0, Ordering::Release);
    }

    #[inline]
    pub(super) fn ticks(&self) -> u32 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// How many ticks to wait, as a status asks, before its command is sent again.
    pub(super) fn retry_ticks(&self, status: Status) -> u32 {
        let Some(which) = Some(status.retry_delay()).filter(|which| *which != 0) else { return 0 };
        let delay = self.about.lock().identity.as_ref().map_or(0, |it| it.retry_delay(which));
        let delay = MOST_RETRY_DELAY.min(Duration::from_millis(100) * u32::from(delay));
        u32::try_from(delay.as_nanos().div_ceil(self.options.tick.as_nanos().max(1)))
            .unwrap_or(u32::MAX / 4)
    }

    pub(super) fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks for a command to be aborted, some time soon.
    pub(super) fn want_abort(&self, life: Life, queue: u16, cid: u16) {
        if self.aborts.push((life, queue, cid)).is_err() {
            tracing::debug!("more aborts than can wait");
        }
    }

    /// The next command to abort, unless a reset has ended it already.
    pub(super) fn next_abort(&self) -> Option<(u16, u16)> {
        loop {
            let (life, queue, cid) = self.aborts.pop()?;
            if life == self.life() {
                return Some((queue, cid));
            }
        }
    }

    /// Asks for this life to end with a reset, some time soon.
    pub(super) fn want_reset(&self, life: Life) {
        self.reset_wanted.store(life.0, Ordering::Relaxed);
    }

    pub(super) fn is_reset_wanted(&self) -> bool {
        self.reset_wanted.load(Ordering::Relaxed) == self.life().0
    }

    /// Nobody waits for the answer of a controller that is lost.
    fn check_alive(&self) -> Result<()> {
        if self.life().is_dead() { Err(self.obituary()) } else { Ok(()) }
    }

    /// Why nothing works any more.
    pub(super) fn obituary(&self) -> Error {
        let why = self.death.lock().clone().unwrap_or_default();
        Kind::Io.error(format!("the NVMe controller {} is lost: {why}", self.host.name()))
    }
}
