use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use dma::{HugePages, Region, Window};
use extent::wire::{LONG_REQUEST_BYTES, Reply, Request, Segment};
use extent::{Error, Kind, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Event, Fabric, SessionId};

use super::link::{Line, Link, Posted, gone, refuse};

/// Requests that a session holds before its client must poll.
const MAX_REQUESTS: usize = 1024;

/// Everything on the network.
#[derive(Debug)]
pub(super) struct World {
    rng: StdRng,
    /// Polls so far.
    clock: u64,
    most_polls: u64,
    windows: bool,
    serial: u64,
    links: BTreeMap<SessionId, Link>,
    /// Sessions where something moves: nobody else is looked at.
    moving: BTreeSet<SessionId>,
    /// Sessions of each shard for which the node has something that waits for its kick.
    staged: Vec<BTreeSet<SessionId>>,
    /// How many sessions each shard has.
    open: Vec<usize>,
    /// What each shard has yet to be told.
    news: Vec<Vec<Event>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            clock: 0,
            most_polls: 8,
            windows: false,
            serial: 0,
            links: BTreeMap::new(),
            moving: BTreeSet::new(),
            staged: Vec::new(),
            open: Vec::new(),
            news: Vec::new(),
        }
    }

    pub(super) fn set_windows(&mut self, windows: bool) {
        self.windows = windows;
    }

    pub(super) fn set_delay(&mut self, most_polls: u64) {
        self.most_polls = most_polls;
    }

    pub(super) fn add_shard(&mut self) -> u16 {
        self.news.push(Vec::new());
        self.staged.push(BTreeSet::new());
        self.open.push(0);
        u16::try_from(self.news.len() - 1).expect("a test has few shards")
    }

    pub(super) fn connect(&mut self, shard: u16) -> SessionId {
        let session = SessionId(SessionId::base(Fabric::Simulated, shard).0 | self.serial);
        self.serial += 1;
        let peer = format!("client {}", self.serial);
        self.news[usize::from(shard)].push(Event::Opened {
            session,
            fabric: Fabric::Simulated,
            peer,
        });
        let link = Link {
            shard,
            windows: self.windows,
            regions: HashMap::new(),
            requests: Line::new(),
            posted: Line::new(),
            replies: Vec::new(),
            leaves_at: None,
        };
        self.links.insert(session, link);
        self.open[usize::from(shard)] += 1;
        session
    }

    pub(super) fn sessions(&self) -> Vec<SessionId> {
        self.links.keys().copied().collect()
    }

    pub(super) fn sessions_of(&self, shard: u16) -> usize {
        self.open[usize::from(shard)]
    }

    /// One poll: whatever is due happens.
    pub(super) fn step(&mut self) {
        self.clock += 1;
        let clock = self.clock;
        let (mut left, mut still) = (Vec::new(), Vec::new());
        for &session in &self.moving {
            let Some(link) = self.links.get_mut(&session) else {
                still.push(session);
                continue;
            };
            let news = &mut self.news[usize::from(link.shard)];
            while let Some(request) = link.requests.pop_due(clock) {
                let mut capsule = [0; LONG_REQUEST_BYTES];
                let length = request.encode(&mut capsule);
                news.push(Event::Request { session, capsule, length });
            }
            while let Some(posted) = link.posted.pop_due(clock) {
                link.perform(session, posted, news);
            }
            if link.leaves_at.is_some_and(|at| at <= clock) {
                left.push(session);
            }
            if !link.is_moving() {
                still.push(session);
            }
        }
        for session in still {
            self.moving.remove(&session);
        }
        for session in left {
            self.end(session, &Kind::Disconnected.error("the client left"));
        }
    }

    pub(super) fn take_news(&mut self, shard: u16, events: &mut Vec<Event>) {
        events.append(&mut self.news[usize::from(shard)]);
    }

    pub(super) fn post(&mut self, shard: u16, session: SessionId, posted: Posted) {
        match self.links.get_mut(&session) {
            Some(link) => {
                link.posted.staged.push_back(posted);
                self.staged[usize::from(shard)].insert(session);
            }
            None => refuse(session, posted, &gone(), &mut self.news[usize::from(shard)]),
        }
    }

    pub(super) fn kick_node(&mut self, shard: u16) {
        for session in std::mem::take(&mut self.staged[usize::from(shard)]) {
            if let Some(link) = self.links.get_mut(&session) {
                link.posted.kick(|| self.clock + self.rng.random_range(0..=self.most_polls));
                self.moving.insert(session);
            }
        }
    }

    pub(super) fn is_quiet(&self, shard: u16) -> bool {
        let of_it = |session: &SessionId| {
            let link = self.links.get(session).filter(|link| link.shard == shard);
            link.is_some_and(|link| link.requests.moving.len() + link.posted.len() > 0)
        };
        self.news[usize::from(shard)].is_empty()
            && !self.moving.iter().chain(&self.staged[usize::from(shard)]).any(of_it)
    }

    pub(super) fn map(&self, session: SessionId, segment: Segment) -> Result<Option<Window>> {
        match self.links.get(&session) {
            Some(link) if link.windows => link.window(segment).map(Some),
            _ => Ok(None),
        }
    }

    /// Ends a session for both sides.
    pub(super) fn end(&mut self, session: SessionId, reason: &Error) {
        let Some(mut link) = self.links.remove(&session) else { return };
        self.open[usize::from(link.shard)] -= 1;
        let news = &mut self.news[usize::from(link.shard)];
        for posted in link.posted.drain() {
            refuse(session, posted, reason, news);
        }
        let keys: Vec<u32> = link.regions.keys().copied().collect();
        keys.into_iter().for_each(|key| link.forget(key, news));
        news.push(Event::Closed { session, reason: reason.duplicate() });
    }

    /// The client is gone, and its memory with it; the node notices later.
    pub(super) fn leave(&mut self, session: SessionId) {
        let delay = self.rng.random_range(0..=self.most_polls);
        if let Some(link) = self.links.get_mut(&session) {
            link.leaves_at = Some(self.clock + delay);
            self.moving.insert(session);
            let keys: Vec<u32> = link.regions.keys().copied().collect();
            keys.into_iter()
                .for_each(|key| link.forget(key, &mut self.news[usize::from(link.shard)]));
        }
    }

    pub(super) fn allocate(&mut self, session: SessionId, length: usize) -> Result<Arc<Region>> {
        let region = Region::anonymous(length, HugePages::Never)?;
        self.register(session, &region)?;
        Ok(region)
    }

    pub(super) fn register(&mut self, session: SessionId, region: &Arc<Region>) -> Result<()> {
        let link = self.links.get_mut(&session).ok_or_else(gone)?;
        link.regions.insert(region.id().0, Arc::clone(region));
        if link.windows {
            let region = Arc::clone(region);
            self.news[usize::from(link.shard)].push(Event::Mapped { session, region });
        }
        Ok(())
    }

    pub(super) fn release(&mut self, session: SessionId, region: &Region) {
        if let Some(link) = self.links.get_mut(&session) {
            link.forget(region.id().0, &mut self.news[usize::from(link.shard)]);
        }
    }

    pub(super) fn send(&mut self, session: SessionId, request: &Request) -> Result<()> {
        let link = self.links.get_mut(&session).ok_or_else(gone)?;
        if link.requests.len() == MAX_REQUESTS {
            return Err(Kind::Busy.error("the simulated ring is full: poll first"));
        }
        link.requests.staged.push_back(*request);
        Ok(())
    }

    pub(super) fn kick_client(&mut self, session: SessionId) -> Result<()> {
        let link = self.links.get_mut(&session).ok_or_else(gone)?;
        link.requests.kick(|| self.clock + self.rng.random_range(0..=self.most_polls));
        self.moving.insert(session);
        Ok(())
    }

    pub(super) fn take_replies(
        &mut self,
        session: SessionId,
        replies: &mut Vec<Reply>,
    ) -> Result<()> {
        let link = self.links.get_mut(&session).ok_or_else(gone)?;
        replies.append(&mut link.replies);
        Ok(())
    }
}
