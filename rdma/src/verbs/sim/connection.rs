//! RDMA CM on a simulated network: how connections are made and end.

use extent::{Kind, Result};
use rand::Rng;

use super::super::connection::CmEventKind;
use super::pair::State;
use super::queue::PairRef;
use super::world::{Due, World};

/// How much longer than usual the news of an end may take.
const LATE: u64 = 5_000;

/// One end of a connection: its number, which is used again, and which of those that had it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IdRef {
    pub(super) number: usize,
    pub(super) life: u64,
}

/// See [`IdRef`].
#[derive(Debug)]
pub(super) struct Id {
    pub(super) life: u64,
    pub(super) channel: u32,
    pub(super) device: u8,
    pub(super) pair: Option<PairRef>,
    peer: Option<IdRef>,
    /// Of a client: the id that listens where it knocks.
    knocks_at: Option<usize>,
    /// Of a client: for how long the node is to send again what it has no receive for.
    patience: u8,
    is_over: bool,
}

/// What is told of a connection.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) kind: CmEventKind,
    pub(super) private_data: Vec<u8>,
    /// Of a request: the new id, and what the client asks for.
    pub(super) request: Option<IdRef>,
    pub(super) peer_reads: u8,
    pub(super) peer_patience: u8,
}

impl Told {
    pub(super) fn of(kind: CmEventKind) -> Self {
        let private_data = Vec::new();
        Self { kind, private_data, request: None, peer_reads: 0, peer_patience: 0 }
    }
}

impl World {
    pub(super) fn id(&mut self, id: IdRef) -> Option<&mut Id> {
        self.ids.get_mut(&id.number).filter(|known| known.life == id.life)
    }

    /// A new end, of a client if it is said where that knocks.
    pub(super) fn make_id(&mut self, channel: u32, knocks_at: Option<usize>) -> IdRef {
        let life = self.next_serial();
        let number = self.free_ids.pop().unwrap_or(self.ids.len() + 1);
        let device = self.rng.random_range(0..self.options.devices.max(1));
        let id = Id {
            life,
            channel,
            device,
            pair: None,
            peer: None,
            knocks_at,
            patience: 0,
            is_over: false,
        };
        assert!(self.ids.insert(number, id).is_none(), "numbers are used again when they are free");
        IdRef { number, life }
    }

    /// Nothing is told of it any more.
    pub(super) fn drop_id(&mut self, id: IdRef) {
        self.ids.remove(&id.number).expect("dropped once");
        self.free_ids.push(id.number);
    }

    /// What a channel tells next, of an id that is still there.
    pub(super) fn next_told(&mut self, channel: u32) -> Option<(IdRef, Told)> {
        let events = self.channels.get_mut(&channel)?;
        while let Some((id, told)) = events.pop_front() {
            if self.ids.get(&id.number).is_some_and(|known| known.life == id.life) {
                return Some((id, told));
            }
        }
        None
    }

    pub(super) fn tell(&mut self, id: IdRef, told: Told) {
        let Some(known) = self.id(id) else { return };
        let channel = known.channel;
        if told.kind == CmEventKind::Established
            && let Some(pair) = known.pair
            && known.knocks_at.is_some()
        {
            self.stand(id, pair);
        }
        self.channels.get_mut(&channel).expect("ids keep it").push_back((id, told));
    }

    /// A client's end hears that it is accepted: it can send, and the node is told.
    fn stand(&mut self, id: IdRef, pair: PairRef) {
        if let Some(pair) =
            self.pairs.get_mut(&pair.number).filter(|pair| pair.state == State::Made)
        {
            pair.state = State::Ready;
        }
        let peer = self.id(id).and_then(|known| known.peer);
        if let Some(peer) = peer.filter(|_| !self.chance(self.options.unestablished)) {
            let soon = self.soon();
            self.schedule(soon, Due::Tell(peer, Told::of(CmEventKind::Established)));
        }
    }

    /// A client asks for a connection.
    pub(super) fn ask(&mut self, id: IdRef, data: &[u8], reads_in: u8, patience: u8) -> Result<()> {
        let known = self.id(id).expect("whoever calls keeps it");
        known.patience = patience;
        let Some(listener) = known.knocks_at else {
            return Err(Kind::Invalid.error("an id that found no way to a node"));
        };
        let listener = IdRef { number: listener, life: self.ids[&listener].life };
        let channel = self.ids[&listener.number].channel;
        let request = self.make_id(channel, None);
        self.id(request).expect("just made").peer = Some(id);
        self.id(id).expect("as above").peer = Some(request);
        let told = Told {
            kind: CmEventKind::ConnectRequest,
            private_data: data.to_vec(),
            request: Some(request),
            peer_reads: reads_in,
            peer_patience: patience,
        };
        let soon = self.soon();
        self.schedule(soon, Due::Tell(listener, told));
        Ok(())
    }

    /// A node takes a client.
    pub(super) fn accept(&mut self, id: IdRef, data: &[u8], peer_patience: u8) -> Result<()> {
        let known = self.id(id).expect("whoever calls keeps it");
        let (mine, peer) = (known.pair.expect("made before"), known.peer.expect("it asked"));
        let Some((theirs, patience)) =
            self.id(peer).and_then(|peer| Some((peer.pair?, peer.patience)))
        else {
            return Err(Kind::Disconnected.error("the client does not wait any more"));
        };
        let pair = self.pairs.get_mut(&mine.number).expect("the id's");
        (pair.state, pair.peer, pair.patience) = (State::Ready, Some(theirs), patience);
        let other = self.pairs.get_mut(&theirs.number).expect("the id's");
        other.peer = Some(mine);
        other.patience = peer_patience;
        let told = Told { private_data: data.to_vec(), ..Told::of(CmEventKind::Established) };
        let soon = self.soon();
        self.schedule(soon, Due::Tell(peer, told));
        Ok(())
    }

    pub(super) fn reject(&mut self, id: IdRef, data: &[u8]) {
        let Some(peer) = self.id(id).and_then(|known| known.peer) else { return };
        let told = Told { private_data: data.to_vec(), ..Told::of(CmEventKind::Rejected) };
        let soon = self.soon();
        self.schedule(soon, Due::Tell(peer, told));
    }

    /// Ends a connection; both ends are told, the other one perhaps long after.
    pub(super) fn disconnect(&mut self, id: IdRef) {
        let Some(known) = self.id(id) else { return };
        if std::mem::replace(&mut known.is_over, true) {
            return;
        }
        let (pair, peer) = (known.pair, known.peer);
        if let Some(pair) = pair {
            self.end_pair(pair);
        }
        let late = if self.chance(self.options.late) { self.rng.random_range(0..LATE) } else { 0 };
        let soon = self.soon();
        self.schedule(soon, Due::Tell(id, Told::of(CmEventKind::Disconnected)));
        self.schedule(soon + 1, Due::Tell(id, Told::of(CmEventKind::TimewaitExit)));
        if let Some(peer) = peer {
            self.schedule(soon + late, Due::Tell(peer, Told::of(CmEventKind::Disconnected)));
        }
    }

    /// Cuts the network between the ends of a connection. They are told long after, or never: what is
    /// sent is not acknowledged.
    pub(super) fn cut(&mut self, id: IdRef) {
        let Some(known) = self.id(id) else { return };
        let (pair, peer) = (known.pair, known.peer);
        let other = peer.and_then(|peer| self.id(peer)).and_then(|peer| peer.pair);
        for pair in [pair, other].into_iter().flatten() {
            if let Some(pair) = self.pairs.get_mut(&pair.number).filter(|p| p.life == pair.life) {
                pair.is_cut = true;
            }
            self.try_again(pair);
        }
        let at = self.clock + self.rng.random_range(0..LATE);
        // A client that nobody tells would wait for ever: it never sends by itself.
        for end in [Some(id).filter(|_| self.rng.random()), peer].into_iter().flatten() {
            self.schedule(at, Due::Tell(end, Told::of(CmEventKind::Disconnected)));
        }
    }

    /// The node's ends of connections, oldest first.
    pub(super) fn accepted(&self) -> Vec<IdRef> {
        let is_one = |id: &Id| id.knocks_at.is_none() && id.peer.is_some() && id.pair.is_some();
        let mut ids: Vec<IdRef> = self
            .ids
            .iter()
            .filter(|(_, id)| is_one(id))
            .map(|(&number, id)| IdRef { number, life: id.life })
            .collect();
        ids.sort_by_key(|id| id.life);
        ids
    }

    /// The device is pulled out: every connection over it is told, and breaks.
    pub(super) fn remove_device(&mut self) {
        let ids: Vec<IdRef> =
            self.ids.iter().map(|(&number, id)| IdRef { number, life: id.life }).collect();
        for id in ids {
            let soon = self.soon();
            self.schedule(soon, Due::Tell(id, Told::of(CmEventKind::DeviceRemoval)));
            if let Some(pair) = self.id(id).and_then(|known| known.pair) {
                self.end_pair(pair);
            }
        }
    }
}
