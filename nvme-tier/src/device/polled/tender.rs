//! The thread that watches over a controller: time, aborts, resets, events, health, removal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use extent::{Error, Result};

use super::core::Core;
use super::features;
use crate::device::nvme::{AsynchronousEvent, ControllerStatus, Health, offset};

/// Ticks from one reading of the health log to the next.
const HEALTH_TICKS: u32 = 600;

#[derive(Debug)]
pub(super) struct Tender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tender {
    pub(super) fn start(core: &Arc<Core>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, core) = (Arc::clone(&stop), Arc::clone(core));
        let body = move || {
            while !told.load(Ordering::Acquire) {
                thread::park_timeout(core.options.tick);
                tend(&core);
            }
        };
        let thread = thread::Builder::new()
            .name("nvme".to_owned())
            .spawn(body)
            .map_err(|e| Error::io("starting a thread to watch an NVMe controller", e))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Tender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _panicked_and_said_so = thread.join();
        }
    }
}

fn tend(core: &Core) {
    core.tick();
    if core.life().is_dead() {
        return;
    }
    let status = ControllerStatus(core.registers.read_u32(offset::CSTS));
    if status.is_gone() {
        core.die("its registers read as ones: it was pulled, or lost its power");
    } else if core.host.is_wanted_back() {
        core.die("the kernel takes it away");
        // The question was answered once; the answer holds.
        core.host.release();
    } else if status.is_fatal() {
        core.reset("it reports a fatal error (CSTS.CFS)");
    } else if core.is_reset_wanted() {
        core.reset("a queue asked for it: a command did not end, or one ended that was not there");
    } else {
        send_aborts(core);
        hear_events(core);
        if core.ticks().is_multiple_of(HEALTH_TICKS) {
            read_health(core);
        }
    }
}

fn send_aborts(core: &Core) {
    while let Some((queue, cid)) = core.next_abort() {
        tracing::warn!(
            name = core.host.name(),
            queue,
            cid,
            "aborting a command that takes too long"
        );
        let sent = core.with_admin(|admin| features::abort(admin, queue, cid));
        if let Err(error) = sent {
            tracing::warn!(name = core.host.name(), %error, "no abort");
            core.want_reset();
        }
    }
}

fn hear_events(core: &Core) {
    let events = core.with_admin(super::admin::AdminQueue::take_events);
    if events.is_empty() {
        return;
    }
    for event in events {
        hear(core, event);
    }
    let allowed = core.identity().asynchronous_events;
    core.with_admin(|admin| admin.listen(allowed));
}

fn hear(core: &Core, event: AsynchronousEvent) {
    let (name, kind, information) = (core.host.name(), event.kind(), event.information());
    tracing::warn!(name, kind, information, "an NVMe controller announces an event");
    // Reading the page lets the next event of its type come.
    let read = core.with_admin(|admin| features::log_page(admin, event.log_page().into()));
    if let Err(error) = read {
        tracing::warn!(%error, "the event's log page cannot be read");
    }
    if event.says_namespaces_changed() {
        tracing::warn!(name, "its namespaces have changed: what is past the end of one fails");
    }
    read_health(core);
}

fn read_health(core: &Core) {
    match core.with_admin(features::health) {
        Ok(health) => {
            warn_of(core, &health);
            core.set_health(health);
        }
        Err(error) => {
            tracing::warn!(name = core.host.name(), %error, "no health log");
            // One that does not answer at all is not merely without a log.
            if error.kind() == extent::Kind::Io {
                core.want_reset();
            }
        }
    }
}

fn warn_of(core: &Core, health: &Health) {
    let known = core.health().map_or(0, |before| before.critical_warning);
    if health.critical_warning & !known != 0 {
        let warnings: Vec<_> = health.warnings().collect();
        tracing::error!(name = core.host.name(), ?warnings, "an NVMe device warns");
    }
}
