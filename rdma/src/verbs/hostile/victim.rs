//! A node that serves until dropped, with some memory of its own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use dma::{HugePages, Pool, SizeClass, Source};
use extent::wire::{Command, Request, Segment};
use extent::{Kind, Proof, Result, TenantName};

use super::super::VerbsOptions;
use super::super::send_queue::{Local, Remote, Work};
use super::reaches;
use crate::{
    Event, Fabrics, Gate, Listener, ListenerOptions, OpenGate, SessionId, ShmOptions, Token,
    Transfer, Transport,
};

/// What the node's memory is full of.
pub(super) const FILLING: u8 = 0x5A;

/// What a READ with this tag is answered with: as a node does.
pub(super) const HONEST: u32 = 0;
/// As a node would that mixed its tenants up: the session's queue pair, and the key of the memory of the
/// tenant with this name.
pub(super) const MIXED_UP: [(u32, &str); 2] = [(1, "a"), (2, "b")];

/// Lets in whoever shows a proof that is left, as the tenant that it is for.
#[derive(Debug, Default)]
pub(super) struct Guard(Mutex<HashMap<[u8; 16], (u32, TenantName)>>);

impl Guard {
    pub(super) fn grant(&self, proof: &Proof, connections: u32, tenant: &str) {
        let tenant = tenant.parse().expect("a name");
        self.0.lock().expect("sound").insert(*proof.expose(), (connections, tenant));
    }

    pub(super) fn revoke(&self, proof: &Proof) {
        self.0.lock().expect("sound").remove(proof.expose());
    }
}

impl Gate for Guard {
    fn admit(&self, proof: Option<&Proof>) -> Result<TenantName> {
        let proof = proof.ok_or_else(|| Kind::Denied.error("show a proof: ask for one"))?;
        let mut known = self.0.lock().expect("sound");
        let known = known.get_mut(proof.expose()).filter(|(left, _)| *left > 0);
        let (left, tenant) = known.ok_or_else(|| Kind::Denied.error("that proof is no good"))?;
        *left -= 1;
        Ok(tenant.clone())
    }
}

/// What the node's thread tells.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) opened: AtomicUsize,
    pub(super) closed: AtomicUsize,
    pub(super) requests: AtomicUsize,
    /// Transfers that came to a good end, and others.
    pub(super) written: AtomicUsize,
    pub(super) unwritten: AtomicUsize,
    keys: Mutex<Vec<(TenantName, u32)>>,
}

/// See the module.
pub(super) struct Victim {
    pub(super) address: SocketAddr,
    pub(super) pool: Pool,
    pub(super) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    _listener: Listener,
}

impl Victim {
    /// One that lets everybody in.
    pub(super) fn new() -> Self {
        Self::behind(Arc::new(OpenGate))
    }

    pub(super) fn behind(gate: Arc<dyn Gate>) -> Self {
        let ip = std::env::var("FOREBAY_TEST_RDMA").expect("FOREBAY_TEST_RDMA names addresses");
        let ip: IpAddr = ip.split(',').next().expect("one").parse().expect("an address");
        let verbs = Some(VerbsOptions::default());
        let mut fabrics = Fabrics::new(0, ShmOptions::default(), verbs).expect("RDMA");
        let rdma = vec![SocketAddr::new(ip, 0)];
        let options = ListenerOptions { rdma, gate, ..ListenerOptions::default() };
        let listener = Listener::start(options, vec![fabrics.inbox()]).expect("a port");
        let sizes = [SizeClass { bytes: 64 << 10, count: 4 }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        let mut all: Vec<_> = std::iter::from_fn(|| pool.take(1)).collect();
        all.iter_mut().for_each(|buffer| buffer.as_mut_slice().fill(FILLING));
        drop(all);
        fabrics.register(pool.region()).expect("memory that may be locked");
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let thread = thread::spawn({
            let (stop, seen, pool) = (Arc::clone(&stop), Arc::clone(&seen), pool.clone());
            move || {
                let mut events = Vec::new();
                while !stop.load(Ordering::Acquire) {
                    fabrics.poll(&mut events);
                    if let Some(verbs) = fabrics.verbs() {
                        *seen.keys.lock().expect("sound") = verbs.keys();
                    }
                    events.drain(..).for_each(|event| seen.take(&event, &mut fabrics, &pool));
                    fabrics.kick();
                }
            }
        });
        let address = listener.rdma_addrs()[0];
        Self { address, pool, seen, stop, thread: Some(thread), _listener: listener }
    }

    /// The key that a tenant has for the node's memory, once it has had a session.
    pub(super) fn key_of(&self, tenant: &str) -> u32 {
        let mut key = None;
        super::eventually(
            || {
                key = self.seen.key_of(tenant);
                key.is_some()
            },
            "a session of this tenant",
        );
        key.expect("just seen")
    }

    pub(super) fn is_untouched(&self) -> bool {
        let all: Vec<_> = std::iter::from_fn(|| self.pool.take(1)).collect();
        all.iter().all(|buffer| buffer.as_slice().iter().all(|byte| *byte == FILLING))
    }

    pub(super) fn closes(&self, count: usize) {
        reaches(&self.seen.closed, count);
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || thread::panicking(), "the node panicked");
    }
}

impl Seen {
    fn key_of(&self, tenant: &str) -> Option<u32> {
        let keys = self.keys.lock().expect("sound");
        keys.iter().find(|(name, _)| name.as_str() == tenant).map(|(_, key)| *key)
    }

    fn take(&self, event: &Event, fabrics: &mut Fabrics, pool: &Pool) {
        let counter = match event {
            Event::Opened { .. } => &self.opened,
            Event::Closed { .. } => &self.closed,
            Event::Request { session, capsule, length } => {
                if let Ok(request) = Request::parse(&capsule[..*length]) {
                    self.answer(*session, &request, fabrics, pool);
                }
                &self.requests
            }
            Event::Written { result: Ok(()), .. } => &self.written,
            Event::Written { .. } => &self.unwritten,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Release);
    }

    fn answer(&self, session: SessionId, request: &Request, fabrics: &mut Fabrics, pool: &Pool) {
        let Command::Read { into, .. } = request.command else { return };
        if request.tag == HONEST {
            let from = Source::Buffer(pool.take(1).expect("few at a time"), 0..64);
            let (token, tag) = (Token(u64::from(request.tag)), request.tag);
            let transfer = Transfer { token, tag, segments: into, at: 0 };
            return fabrics.post_write(session, transfer, from);
        }
        let tenant = MIXED_UP.iter().find(|(tag, _)| *tag == request.tag).expect("one of them").1;
        let key = self.key_of(tenant).expect("it has had a session");
        let address = pool.region().base().addr().get() as u64;
        let Segment { address: at, key: remote, .. } = into.as_slice()[0];
        let work = Work::Write {
            from: Local { address, length: 64, key },
            to: Remote { address: at, key: remote },
            immediate: None,
            end: None,
        };
        fabrics.verbs_mut().expect("RDMA").post_raw(session, work);
    }
}
