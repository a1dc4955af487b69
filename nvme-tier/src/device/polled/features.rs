//! What a controller is asked and told by admin commands.

use extent::Result;

use super::admin::AdminQueue;
use crate::device::nvme::{
    CommandSetLimits, HEALTH_BYTES, Health, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace,
    SubmissionEntry, active_namespaces, admin,
};

/// The most I/O queues that are asked for.
const MOST_QUEUES: u32 = 1024;

fn identify(queue: &mut AdminQueue, doing: &str, cns: u32, nsid: u32) -> Result<Vec<u8>> {
    let mut entry = SubmissionEntry::new(admin::IDENTIFY, 0, nsid);
    entry.cdw10 = cns;
    queue.fetch(doing, entry, IDENTIFY_BYTES)
}

pub(super) fn identify_controller(queue: &mut AdminQueue) -> Result<IdentifyController> {
    let page = identify(queue, "identifying the controller", admin::CNS_CONTROLLER, 0)?;
    IdentifyController::parse(&page)
}

/// The ids of its active namespaces.
pub(super) fn namespaces(queue: &mut AdminQueue) -> Result<Vec<u32>> {
    let page = identify(queue, "listing namespaces", admin::CNS_ACTIVE_NAMESPACES, 0)?;
    Ok(active_namespaces(&page).collect())
}

pub(super) fn identify_namespace(
    queue: &mut AdminQueue,
    nsid: u32,
    controller: &IdentifyController,
) -> Result<IdentifyNamespace> {
    let page = identify(queue, "identifying a namespace", admin::CNS_NAMESPACE, nsid)?;
    IdentifyNamespace::parse(&page, controller)
        .map_err(|error| error.while_doing(format!("using namespace {nsid}")))
}

/// What it says of the NVM command set; nothing where it has no such page.
pub(super) fn command_set_limits(
    queue: &mut AdminQueue,
    controller: &IdentifyController,
) -> CommandSetLimits {
    if !controller.has_command_set_pages() {
        return CommandSetLimits::default();
    }
    // CSI, in the eleventh dword, is 0 for the NVM command set.
    identify(queue, "asking for limits of commands", admin::CNS_COMMAND_SET, 0)
        .inspect_err(|error| tracing::debug!(%error, "no limits of commands"))
        .map_or_else(|_| CommandSetLimits::default(), |page| CommandSetLimits::parse(&page))
}

/// Has it say in a status how long to wait before the command is sent again: ACRE (Base 5.27.1.18).
pub(super) fn allow_retry_delays(queue: &mut AdminQueue) -> Result<()> {
    const BEHAVIOR_BYTES: usize = 512;
    let mut behavior = [0; BEHAVIOR_BYTES];
    behavior[0] = 1;
    let mut entry = SubmissionEntry::new(admin::SET_FEATURES, 0, 0);
    entry.cdw10 = admin::FEATURE_HOST_BEHAVIOR;
    queue.give("asking to be told of retry delays", entry, &behavior)
}

/// How many I/O queue pairs the controller grants (Base 5.27.1.5).
pub(super) fn queue_pairs(queue: &mut AdminQueue) -> Result<u16> {
    let mut entry = SubmissionEntry::new(admin::SET_FEATURES, 0, 0);
    entry.cdw10 = admin::FEATURE_NUMBER_OF_QUEUES;
    // Zero-based: completion queues above submission queues.
    entry.cdw11 = (MOST_QUEUES - 1) << 16 | (MOST_QUEUES - 1);
    let granted = queue.execute("asking for I/O queues", entry)?.result;
    let (submission, completion) = (granted & 0xffff, granted >> 16);
    Ok(u16::try_from(submission.min(completion).min(MOST_QUEUES - 1) + 1).unwrap_or(u16::MAX))
}

/// Whether the volatile write cache, if there is one, is in use (Base 5.27.1.4).
pub(super) fn write_cache_is_on(queue: &mut AdminQueue) -> Result<bool> {
    let mut entry = SubmissionEntry::new(admin::GET_FEATURES, 0, 0);
    entry.cdw10 = admin::FEATURE_VOLATILE_WRITE_CACHE;
    Ok(queue.execute("asking for the write cache", entry)?.result & 1 != 0)
}

/// Has it tell of every critical warning, and of changes of its namespaces (Base 5.27.1.8).
pub(super) fn announce_events(queue: &mut AdminQueue) -> Result<()> {
    const WARNINGS: u32 = 0x1f;
    const NAMESPACES: u32 = 1 << 8;
    let set = |queue: &mut AdminQueue, events| {
        let mut entry = SubmissionEntry::new(admin::SET_FEATURES, 0, 0);
        entry.cdw10 = admin::FEATURE_ASYNCHRONOUS_EVENTS;
        entry.cdw11 = events;
        queue.execute("asking to be told of events", entry)
    };
    // An older controller does not know the second kind.
    set(queue, WARNINGS | NAMESPACES).or_else(|_| set(queue, WARNINGS)).map(|_| ())
}

/// Its health (Base 5.16.1.3). Reading it also lets the next event about it come.
pub(super) fn health(queue: &mut AdminQueue) -> Result<Health> {
    let page = log_page(queue, admin::LOG_HEALTH)?;
    Ok(Health::parse(&page))
}

/// The first bytes of any log page.
pub(super) fn log_page(queue: &mut AdminQueue, page: u32) -> Result<Vec<u8>> {
    queue.fetch("reading a log page", SubmissionEntry::log_page(page), HEALTH_BYTES)
}

/// Where shadow doorbells and their event indexes are (Base 5.8).
pub(super) fn use_doorbell_buffers(queue: &mut AdminQueue, iovas: (u64, u64)) -> Result<()> {
    let mut entry = SubmissionEntry::new(admin::DOORBELL_BUFFER_CONFIG, 0, 0);
    entry.data = [iovas.0, iovas.1];
    queue.execute("setting up shadow doorbells", entry).map(|_| ())
}

/// Where one queue pair is, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueuePlace {
    pub(super) id: u16,
    pub(super) submission_iova: u64,
    pub(super) submission_entries: u16,
    pub(super) completion_iova: u64,
    pub(super) completion_entries: u16,
}

/// Makes the completion queue, then the submission queue that uses it (Base 5.4, 5.5). No
/// interrupts: they are polled.
pub(super) fn create_queues(queue: &mut AdminQueue, place: &QueuePlace) -> Result<()> {
    const CONTIGUOUS: u32 = 1;
    let size = |entries: u16| u32::from(entries - 1) << 16 | u32::from(place.id);
    let mut entry = SubmissionEntry::new(admin::CREATE_COMPLETION_QUEUE, 0, 0);
    entry.data[0] = place.completion_iova;
    (entry.cdw10, entry.cdw11) = (size(place.completion_entries), CONTIGUOUS);
    queue.execute("creating a completion queue", entry)?;
    let mut entry = SubmissionEntry::new(admin::CREATE_SUBMISSION_QUEUE, 0, 0);
    entry.data[0] = place.submission_iova;
    entry.cdw10 = size(place.submission_entries);
    entry.cdw11 = CONTIGUOUS | u32::from(place.id) << 16;
    let made = queue.execute("creating a submission queue", entry);
    if made.is_err() {
        let _half_made = delete(queue, admin::DELETE_COMPLETION_QUEUE, place.id);
    }
    made.map(|_| ())
}

/// Deletes both queues of a pair (Base 5.6, 5.7), the one that uses the other first.
pub(super) fn delete_queues(queue: &mut AdminQueue, id: u16) -> Result<()> {
    delete(queue, admin::DELETE_SUBMISSION_QUEUE, id)?;
    delete(queue, admin::DELETE_COMPLETION_QUEUE, id)
}

fn delete(queue: &mut AdminQueue, opcode: u8, id: u16) -> Result<()> {
    let mut entry = SubmissionEntry::new(opcode, 0, 0);
    entry.cdw10 = u32::from(id);
    queue.execute("deleting a queue", entry).map(|_| ())
}

/// Asks for a command to be aborted (Base 5.1). The controller need not do it.
pub(super) fn abort(queue: &mut AdminQueue, queue_id: u16, cid: u16) -> Result<()> {
    let mut entry = SubmissionEntry::new(admin::ABORT, 0, 0);
    entry.cdw10 = u32::from(cid) << 16 | u32::from(queue_id);
    queue.execute("aborting a command", entry).map(|_| ())
}
