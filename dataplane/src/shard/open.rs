//! HELLO, OPEN, STAT and CLOSE.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma::Target;
use extent::wire::{
    HelloBody, MAX_CREDITS, MAX_TRANSFER_BYTES, Open, OpenBody, OpenMode, Reply, Segments, VERSION,
};
use extent::{Attempt, Error, FileName, Generation, Kind, Result};
use nvme_tier::{File, FileGeneration, Tier};
use rdma::Transfer;

use super::draft::DraftState;
use super::session::{Handle, Session};
use super::{Caller, Op, Request, Shard};
use crate::mover::Demand;
use crate::slots::Key;

/// The longest name: silo, slash, key.
const MAX_NAME_BYTES: u64 = (FileName::MAX_SILO_BYTES + 1 + FileName::MAX_KEY_BYTES) as u64;

/// An OPEN that waits for its name, or for the mover to adopt the file.
pub(super) struct OpenRequest {
    caller: Caller,
    mode: OpenMode,
    name: Segments,
    asked: bool,
    /// The name, once the mover was asked for it.
    looked_up: Option<FileName>,
}

impl Shard {
    pub(super) fn hello(
        &mut self,
        caller: Caller,
        versions: (u16, u16),
        credits: u16,
    ) -> Result<()> {
        if !(versions.0..=versions.1).contains(&VERSION) {
            return Err(Kind::Unsupported.error(format!(
                "the client speaks versions {} to {}, this node {VERSION}",
                versions.0, versions.1
            )));
        }
        let most = self.node.options.credits.min(MAX_CREDITS);
        let credits = credits.clamp(1, most);
        if let Some(session) = self.sessions.get_mut(&caller.session) {
            session.grant(credits);
        }
        let body = HelloBody {
            version: VERSION,
            credits,
            features: 0,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            block_bytes: self.node.tier.checksum_block_bytes(),
        };
        self.answer(caller, Reply { body: body.encode(), ..Reply::success(caller.tag) });
        Ok(())
    }

    pub(super) fn open(&mut self, caller: Caller, open: Open) -> Result<()> {
        let name_bytes = open.name.total_bytes();
        if name_bytes > MAX_NAME_BYTES {
            return Err(Kind::Invalid
                .error(format!("a name of {name_bytes} bytes, and the most is {MAX_NAME_BYTES}")));
        }
        if name_bytes != 0 {
            let request = OpenRequest {
                caller,
                mode: open.mode,
                name: open.name,
                asked: false,
                looked_up: None,
            };
            let key = self.requests.insert(Request::Open(request));
            self.pump_open(key);
            return Ok(());
        }
        let file = self.node.tier.file(open.file).ok_or_else(|| {
            Kind::NotFound.error(format!("file {} is not known here: open it by name", open.file))
        })?;
        self.open_file(caller, open.mode, &file)
    }

    /// Asks for the bytes of the name.
    pub(super) fn pump_open(&mut self, key: Key) {
        let Some(Request::Open(request)) = self.requests.get_mut(key) else { return };
        if request.asked {
            return;
        }
        let (caller, name) = (request.caller, request.name);
        let bytes = usize::try_from(name.total_bytes()).expect("a name is short");
        let Some(buffer) = self.pool.take(bytes) else {
            return self.stalled.push_back(key);
        };
        request.asked = true;
        let token = self.transfer_token(Op::Name(key));
        let transfer = Transfer { token, tag: caller.tag, segments: name, at: 0 };
        self.transport.post_read(caller.session, transfer, Target::Buffer(buffer, 0..bytes));
    }

    pub(super) fn on_name(&mut self, key: Key, into: &Target, result: Result<()>) {
        let Some(Request::Open(request)) = self.requests.get_mut(key) else { return };
        let (caller, mode) = (request.caller, request.mode);
        let opened = result
            .and_then(|()| name_in(into))
            .and_then(|name| self.open_name(key, caller, mode, name));
        match opened {
            Ok(true) => drop(self.requests.remove(key)),
            Ok(false) => {}
            Err(error) => {
                self.requests.remove(key);
                self.answer_failure(caller, &error);
            }
        }
    }

    /// Whether the request is answered; else the mover looks the name up in its silo first. A
    /// write needs that too: it is what the new generation will be written back over.
    fn open_name(
        &mut self,
        key: Key,
        caller: Caller,
        mode: OpenMode,
        name: FileName,
    ) -> Result<bool> {
        if let OpenMode::Write(_) = mode {
            self.check_writable(&name)?;
        }
        if let Some(file) = self.node.tier.file(name.id()) {
            self.open_file(caller, mode, &file)?;
            return Ok(true);
        }
        if let Some(Request::Open(request)) = self.requests.get_mut(key) {
            request.looked_up = Some(name.clone());
        }
        let inbox = Arc::clone(&self.inbox);
        let demand = Demand::Adopt { name, inbox, request: key };
        self.node.demands.try_send(demand).map_err(|_| busy_mover())?;
        Ok(false)
    }

    pub(super) fn on_opened(&mut self, key: Key, result: Result<Arc<File>>) {
        let Some(Request::Open(request)) = self.requests.remove(key) else { return };
        let (caller, mode) = (request.caller, request.mode);
        let opened = match (result, mode, request.looked_up) {
            (Ok(file), ..) => self.open_file(caller, mode, &file),
            // Not in the silo either: the write makes it.
            (Err(error), OpenMode::Write(expected), Some(name))
                if error.kind() == Kind::NotFound =>
            {
                self.open_to_write(caller, name, expected)
            }
            (Err(error), ..) => Err(error),
        };
        if let Err(error) = opened {
            self.answer_failure(caller, &error);
        }
    }

    fn open_file(&mut self, caller: Caller, mode: OpenMode, file: &Arc<File>) -> Result<()> {
        let wanted = match mode {
            OpenMode::Write(expected) => {
                return self.open_to_write(caller, file.name().clone(), expected);
            }
            OpenMode::Read(generation) => generation,
        };
        let newest = file.newest();
        if wanted != Generation(0) && wanted != newest.number() {
            return Err(Kind::Stale.error(format!(
                "generation {wanted} of {} is not here: the newest is {}",
                file.name(),
                newest.number()
            )));
        }
        let body = open_body(&self.node.tier, &newest);
        self.add_handle(caller, Handle::Reader(newest), body)
    }

    fn check_writable(&self, name: &FileName) -> Result<()> {
        if self.node.draining.load(Ordering::Relaxed) {
            return Err(Kind::Busy.error("the node is draining and takes no new writes"));
        }
        match self.node.silos.get(name.silo()) {
            None => Err(Kind::NotFound.error(format!("there is no silo {:?}", name.silo()))),
            Some(false) => Err(Kind::Unsupported.error(format!(
                "silo {:?} is read-only: what is written here could never go back",
                name.silo()
            ))),
            Some(true) => Ok(()),
        }
    }

    fn open_to_write(&mut self, caller: Caller, name: FileName, expected: u64) -> Result<()> {
        self.check_writable(&name)?;
        let draft = self.node.tier.begin(name, expected)?;
        let body = OpenBody {
            file: draft.id(),
            generation: Generation(0),
            length: 0,
            extent_bytes: draft.extent_bytes(),
            resident_extents: 0,
            total_extents: 0,
            identity: identity(&self.node.tier, draft.attempt()),
        };
        let block = self.node.tier.checksum_block_bytes();
        let key = self.drafts.insert(DraftState::new(draft, block));
        self.add_handle(caller, Handle::Writer(key), body).inspect_err(|_| {
            self.drafts.remove(key);
        })
    }

    fn add_handle(&mut self, caller: Caller, handle: Handle, body: OpenBody) -> Result<()> {
        let session = self.sessions.get_mut(&caller.session).ok_or_else(gone)?;
        let value = session.add(handle)?;
        self.answer(caller, Reply { value, body: body.encode(), ..Reply::success(caller.tag) });
        Ok(())
    }

    pub(super) fn stat(&mut self, caller: Caller, handle: u64) -> Result<()> {
        let body = match self.handle(caller, handle)? {
            Handle::Reader(generation) => open_body(&self.node.tier, &generation),
            Handle::Writer(key) => {
                let draft = self.drafts.get_mut(key).ok_or_else(gone)?;
                draft.body(&self.node.tier)
            }
        };
        let reply = Reply { value: handle, body: body.encode(), ..Reply::success(caller.tag) };
        self.answer(caller, reply);
        Ok(())
    }

    pub(super) fn close(&mut self, caller: Caller, handle: u64) -> Result<()> {
        let session = self.sessions.get_mut(&caller.session).ok_or_else(gone)?;
        let handle = session.replace(handle, None)?;
        self.let_go(&handle);
        self.answer(caller, Reply::success(caller.tag));
        Ok(())
    }

    /// Lets everything go that a session that is over had open.
    pub(super) fn abandon(&mut self, session: Session) {
        for handle in session.into_handles() {
            self.let_go(&handle);
        }
    }

    fn let_go(&mut self, handle: &Handle) {
        if let &Handle::Writer(key) = handle
            && let Some(draft) = self.drafts.get_mut(key)
        {
            draft.abandon();
            self.settle_draft(key);
        }
    }

    pub(super) fn handle(&self, caller: Caller, handle: u64) -> Result<Handle> {
        let session = self.sessions.get(&caller.session).ok_or_else(gone)?;
        session.handle(handle).cloned()
    }
}

/// The body that describes a committed generation.
pub(super) fn open_body(tier: &Tier, generation: &FileGeneration) -> OpenBody {
    OpenBody {
        file: generation.file_id(),
        generation: generation.number(),
        length: generation.length(),
        extent_bytes: generation.extent_bytes(),
        resident_extents: generation.resident_extents(),
        total_extents: generation.extent_count(),
        identity: identity(tier, generation.attempt()),
    }
}

/// What tells the bytes of an attempt from those of all others, on this tier and on any other one:
/// generations are counted anew when a file was forgotten, attempts never are.
pub(super) fn identity(tier: &Tier, attempt: Attempt) -> u128 {
    (tier.id().0 << 64) | u128::from(attempt.0)
}

fn name_in(into: &Target) -> Result<FileName> {
    let Target::Buffer(buffer, range) = into else {
        unreachable!("names are fetched into buffers")
    };
    std::str::from_utf8(&buffer.as_slice()[range.clone()])
        .map_err(|e| Kind::Invalid.error("a file name must be UTF-8").caused_by(e))?
        .parse()
}

pub(super) fn busy_mover() -> Error {
    Kind::Busy.error("too many fetches are waiting: try again in a while")
}

pub(super) fn gone() -> Error {
    Kind::Disconnected.error("the session is over")
}
