use std::time::Duration;

use extent::wire::OpenMode;
use proptest::prelude::*;

use super::*;
use crate::Reconnect;
use crate::fake::Fake;

fn connect(fake: &Fake, options: &Options) -> Session {
    Session::connect(fake.channel(Fabric::Simulated), options).expect("a node that answers")
}

fn finish(session: &mut Session) -> Vec<Completed> {
    let mut completed = Vec::new();
    session.kick();
    while session.outstanding() != 0 {
        session.poll(&mut completed);
        session.wait(Duration::ZERO);
    }
    completed
}

fn open(session: &mut Session, name: &str) -> Result<(u64, wire::OpenBody)> {
    session.submit_open(&name.parse()?, OpenMode::Read(extent::Generation(0)))?;
    finish(session).pop().expect("one completion").opened()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_read_gets_its_own_bytes(
        seed: u64, credits in 1u16..20, ring in 1usize..8, verify: bool,
        reads in proptest::collection::vec((0u64..30_000, 1usize..20_000), 1..20),
    ) {
        let fake = Fake::new();
        let bytes = fake.add_file("data/a", 25_000);
        {
            let mut node = fake.node();
            (node.seed, node.credits, node.ring) = (seed, credits, ring);
        }
        let mut session = connect(&fake, &Options { verify, ..Options::default() });
        let (handle, body) = open(&mut session, "data/a").expect("there");
        prop_assert_eq!(body.length, 25_000);
        let mut tickets = Vec::new();
        for (offset, length) in &reads {
            let memory = session.allocate(*length).expect("memory");
            tickets.push(session.submit_read(handle, *offset, memory, 0..*length).expect("taken"));
        }
        let mut completed = finish(&mut session);
        completed.sort_by_key(|completed| completed.ticket);
        prop_assert_eq!(completed.len(), reads.len());
        for ((done, (offset, length)), ticket) in completed.iter().zip(&reads).zip(tickets) {
            let begin = usize::try_from(*offset).expect("small").min(bytes.len());
            let expected = &bytes[begin..(begin + length).min(bytes.len())];
            prop_assert!(done.result.is_ok() && done.ticket == ticket);
            prop_assert_eq!(done.bytes, expected.len() as u64);
            let memory = done.memory.as_ref().expect("given back");
            prop_assert_eq!(&memory.as_slice()[..expected.len()], expected);
        }
        prop_assert!(fake.node().peak_in_flight <= usize::from(credits));
        prop_assert_eq!(session.in_flight(), 0);
    }

    #[test]
    fn a_lost_node_answers_everything_exactly_once(
        seed: u64, lose_after in 0usize..40, count in 1usize..30, shared: bool,
    ) {
        let fake = Fake::new();
        fake.add_file("data/a", 100_000);
        let fabric = if shared { Fabric::SharedMemory } else { Fabric::Tcp };
        let mut session =
            Session::connect(fake.channel(fabric), &Options::default()).expect("a node");
        let (handle, _) = open(&mut session, "data/a").expect("there");
        {
            let mut node = fake.node();
            (node.seed, node.lose_after) = (seed, Some(lose_after));
        }
        let mut tickets = Vec::new();
        let mut refused = 0;
        for _ in 0..count {
            let memory = session.allocate(9000).expect("memory");
            match session.submit_read(handle, 0, memory, 0..9000) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    prop_assert_eq!(error.error.kind(), Kind::Disconnected);
                    refused += 1;
                }
            }
        }
        let mut completed = finish(&mut session);
        completed.sort_by_key(|completed| completed.ticket);
        let seen: Vec<_> = completed.iter().map(|completed| completed.ticket).collect();
        prop_assert_eq!(seen, tickets);
        prop_assert_eq!(refused, 0);
        for done in &completed {
            match &done.result {
                Ok(()) => prop_assert!(done.bytes == 9000 && done.memory.is_some()),
                Err(error) => {
                    prop_assert_eq!(error.kind(), Kind::Disconnected);
                    prop_assert!(error.context().contains("the cable fell out"));
                    prop_assert!(shared || done.memory.is_some());
                }
            }
        }
        if session.failure().is_some() {
            prop_assert_eq!(fake.node().channels, 0);
            let error = session.submit_ping().expect_err("over");
            prop_assert_eq!(error.kind(), Kind::Disconnected);
        }
    }
}

#[test]
fn memory_that_a_device_may_still_write_is_not_given_back() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let mut session =
        Session::connect(fake.channel(Fabric::SharedMemory), &Options::default()).expect("a node");
    let (handle, _) = open(&mut session, "data/a").expect("there");
    fake.node().replies_per_poll = 0;
    let sent = session.allocate(4096).expect("memory");
    let sent = session.submit_read(handle, 0, sent, 0..4096).expect("taken");
    session.kick();
    let unsent = session.allocate(4096).expect("memory");
    session.submit_read(handle, 0, unsent, 0..4096).expect("taken");
    session.tear_down(&Kind::Disconnected.error("nobody answered"));
    for done in finish(&mut session) {
        assert_eq!(done.memory.is_none(), done.ticket == sent);
    }
}

#[test]
fn a_full_session_refuses_and_gives_the_memory_back() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let mut session = connect(&fake, &Options { queue: 2, ..Options::default() });
    let (handle, _) = open(&mut session, "data/a").expect("there");
    for _ in 0..2 {
        let memory = session.allocate(100).expect("memory");
        session.submit_read(handle, 0, memory, 0..100).expect("taken");
    }
    let memory = session.allocate(100).expect("memory");
    let refused = session.submit_read(handle, 0, memory, 0..100).expect_err("full");
    assert_eq!((refused.error.kind(), refused.memory.len()), (Kind::Busy, 100));
    assert_eq!(finish(&mut session).len(), 2);
    session.submit_read(handle, 0, refused.memory, 0..100).expect("taken now");
}

#[test]
fn an_error_carries_the_nodes_sentence_and_leaves_the_session_alone() {
    let fake = Fake::new();
    fake.add_file("data/a", 50_000);
    let mut session = connect(&fake, &Options::default());
    let error = open(&mut session, "data/b").expect_err("absent");
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(error.context(), "no file data/b: register it first");
    let (handle, _) = open(&mut session, "data/a").expect("there");
    fake.node().fail = Some((3, Kind::Stale, "the source changed"));
    let memory = session.allocate(50_000).expect("memory");
    session.submit_read(handle, 0, memory, 0..50_000).expect("taken");
    let mut done = finish(&mut session);
    let done = done.pop().expect("one");
    assert_eq!(done.result.expect_err("stale").kind(), Kind::Stale);
    session.submit_read(handle, 0, done.memory.expect("given back"), 0..50_000).expect("taken");
    assert_eq!(finish(&mut session).pop().expect("one").bytes, 50_000);
}

#[test]
fn credits_may_shrink_and_grow() {
    let fake = Fake::new();
    fake.add_file("data/a", 100_000);
    let mut session = connect(&fake, &Options::default());
    let (handle, _) = open(&mut session, "data/a").expect("there");
    for credits in [2, 16] {
        fake.node().credits = credits;
        session.submit_ping().expect("taken");
        finish(&mut session);
        fake.node().peak_in_flight = 0;
        let memory = session.allocate(100_000).expect("memory");
        session.submit_read(handle, 0, memory, 0..100_000).expect("taken");
        finish(&mut session);
        assert_eq!(fake.node().peak_in_flight, usize::from(credits));
    }
}

#[test]
fn lent_memory_is_used_where_it_is_over_every_connection() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 10_000);
    let options = Options { reconnect: Some(Reconnect::default()), ..Options::default() };
    let session = Session::connect(fake.channel(Fabric::Tcp), &options).expect("a node");
    let mut session = session.reconnecting(fake.connector(Fabric::Tcp, 1), 0);
    let (handle, _) = open(&mut session, "data/a").expect("there");
    let before = fake.node().regions.len();
    let mut owner = vec![0_u8; 10_001];
    let base = std::ptr::NonNull::from(&mut owner[1]);
    // SAFETY: the vector is looked at when the region is gone.
    #[expect(unsafe_code, reason = "memory of somebody else's is known by its address")]
    let region = unsafe { Region::lent(base, 10_000) }.expect("memory");
    let mut whole = session.register(&region).expect("registered");
    let again = session.register(&region).expect_err("it is the session's");
    assert_eq!(again.kind(), Kind::Invalid);
    drop(region);
    let rest = whole.split_off(4000);
    for lose in [false, true] {
        if lose {
            fake.node().lose_after = Some(0);
            session.submit_ping().expect("taken");
            finish(&mut session);
            fake.node().lose_after = None;
        }
        session.submit_read(handle, 4000, rest_of(&rest), 0..6000).expect("taken");
        let done = finish(&mut session).pop().expect("one");
        done.result.expect("read");
        let memory = done.memory.expect("given back");
        assert_eq!(memory.as_slice().as_ptr().addr(), base.addr().get() + 4000, "where it is");
        assert_eq!(memory.as_slice(), &bytes[4000..]);
    }
    assert_eq!(fake.node().regions.len(), before + 1);
    session.release(rest);
    assert_eq!(fake.node().regions.len(), before + 1, "half of it may still be used");
    session.release(whole);
    assert_eq!(fake.node().regions.len(), before);
    assert_eq!(owner[4001..], bytes[4000..]);

    let mut shared = Session::connect(fake.channel(Fabric::SharedMemory), &options).expect("one");
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: as above.
    let region = unsafe { Region::lent(base, 10_000) }.expect("memory");
    assert_eq!(shared.register(&region).expect_err("not over this").kind(), Kind::Unsupported);
}

#[expect(unsafe_code, reason = "a second read into the same memory, after the first is over")]
fn rest_of(memory: &Memory) -> Memory {
    // SAFETY: it lives longer, and is looked at by nobody meanwhile.
    unsafe { memory.view(0..memory.len()) }
}

#[test]
fn memory_is_unregistered_when_dropped_and_foreign_memory_refused() {
    let fake = Fake::new();
    let mut session = connect(&fake, &Options::default());
    let before = fake.node().regions.len();
    let long = session.allocate(5 << 20).expect("memory");
    assert_eq!(fake.node().regions.len(), before + 1);
    drop(long);
    session.poll(&mut Vec::new());
    assert_eq!(fake.node().regions.len(), before);

    let mut other = connect(&Fake::new(), &Options::default());
    let foreign = other.allocate(100).expect("memory");
    let refused = session.submit_read(1, 0, foreign, 0..100).expect_err("foreign");
    assert_eq!(refused.error.kind(), Kind::Invalid);
    let own = session.allocate(100).expect("memory");
    let refused = session.submit_read(1, u64::MAX, own, 0..100).expect_err("too far");
    assert_eq!(refused.error.kind(), Kind::Invalid);
}

#[test]
fn damage_on_the_way_is_seen_when_asked_for() {
    let fake = Fake::new();
    fake.add_file("data/a", 100);
    let mut session = connect(&fake, &Options { verify: true, ..Options::default() });
    let (handle, _) = open(&mut session, "data/a").expect("there");
    fake.node().damage = true;
    let memory = session.allocate(100).expect("memory");
    session.submit_read(handle, 0, memory, 0..100).expect("taken");
    let error = finish(&mut session).pop().expect("one").result.expect_err("damaged");
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[test]
fn a_silent_node_is_given_up() {
    let fake = Fake::new();
    fake.node().replies_per_poll = 0;
    let options = Options { timeout: Duration::ZERO, ..Options::default() };
    let outcome = Session::connect(fake.channel(Fabric::Simulated), &options);
    assert_eq!(outcome.err().expect("given up").kind(), Kind::Disconnected);
    assert_eq!(fake.node().channels, 0);
}

/// A session whose node has started anew, and is to open a file again.
fn reopening(fake: &Fake) -> (Session, u64) {
    fake.add_file("data/a", 10_000);
    let options = Options { reconnect: Some(Reconnect::default()), ..Options::default() };
    let session = Session::connect(fake.channel(Fabric::Tcp), &options).expect("a node");
    let mut session = session.reconnecting(fake.connector(Fabric::Tcp, 1), 0);
    let (handle, _) = open(&mut session, "data/a").expect("there");
    fake.restart();
    (session, handle)
}

/// Polls until the node has been asked for its files, and makes it late then.
fn run_late(session: &mut Session) {
    while !matches!(session.link, Link::Reopening { .. }) || !session.unsent_own.is_empty() {
        session.poll(&mut Vec::new());
    }
    for _ in 0..10 {
        session.poll(&mut Vec::new());
    }
    assert!(!session.is_connected(), "files come first");
    session.link = Link::Reopening { until: crate::clock::now() };
    session.poll(&mut Vec::new());
}

#[test]
fn a_file_that_a_busy_node_does_not_open_again_is_not_waited_for() {
    let fake = Fake::new();
    let (mut session, handle) = reopening(&fake);
    fake.node().refuse_opens = Some(Kind::Busy);
    run_late(&mut session);
    assert!(session.is_connected(), "others go on");
    session.submit_stat(handle).expect("taken");
    let error = finish(&mut session).pop().expect("one").result.expect_err("given up");
    assert_eq!(error.kind(), Kind::Disconnected, "busy would be asked again and again");
    assert!(error.context().contains("Open it again"), "{error}");
}

#[test]
pub(crate) fn a_silo_that_hangs_holds_nobody_up_for_ever() {
    let fake = Fake::new();
    let (mut session, handle) = reopening(&fake);
    fake.node().hold_opens = true;
    run_late(&mut session);
    assert!(session.is_connected(), "others go on");
    session.submit_ping().expect("taken");
    finish(&mut session).pop().expect("one").result.expect("there");
    session.submit_stat(handle).expect("taken");
    finish(&mut session).pop().expect("one").result.expect_err("given up");
    fake.node().hold_opens = false;
    while session.own != 0 {
        session.poll(&mut Vec::new());
    }
    assert!(fake.node().handles.is_empty(), "what comes late is given back");
    session.submit_close(handle).expect("taken");
    finish(&mut session).pop().expect("one").result.expect("closed");
    assert_eq!(session.stats().connections, 2);
}

#[test]
fn what_another_try_may_open_is_tried_again() {
    let fake = Fake::new();
    let (mut session, handle) = reopening(&fake);
    fake.node().refuse_opens = Some(Kind::Io);
    session.submit_stat(handle).expect("taken");
    while session.reopening.is_empty() {
        session.poll(&mut Vec::new());
    }
    fake.node().refuse_opens = None;
    finish(&mut session).pop().expect("one").result.expect("open again");
}

#[test]
fn memory_is_asked_for_after_the_greeting() {
    for fabric in [Fabric::Tcp, Fabric::SharedMemory] {
        let fake = Fake::new();
        let options = Options { reconnect: Some(Reconnect::default()), ..Options::default() };
        let session = Session::connect(fake.channel(fabric), &options).expect("a node");
        let mut session = session.reconnecting(fake.connector(fabric, 1), 0);
        let kept = session.allocate(5 << 20).expect("memory");
        fake.restart();
        fake.node().replies_per_poll = 0;
        while !matches!(session.link, Link::Greeting { .. }) {
            session.poll(&mut Vec::new());
        }
        assert_eq!(session.allocate(6 << 20).expect_err("not yet").kind(), Kind::Busy);
        drop(kept);
        session.poll(&mut Vec::new());
        fake.node().replies_per_poll = 3;
        while !session.is_connected() {
            session.poll(&mut Vec::new());
        }
        let before = fake.node().regions.len();
        drop(session.allocate(6 << 20).expect("memory"));
        session.poll(&mut Vec::new());
        assert_eq!(fake.node().regions.len(), before, "what is not used is not kept");
    }
}

#[test]
fn memory_that_does_not_come_back_is_not_asked_for_again() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let options = Options { reconnect: Some(Reconnect::default()), ..Options::default() };
    let session = Session::connect(fake.channel(Fabric::SharedMemory), &options).expect("a node");
    let mut session = session.reconnecting(fake.connector(Fabric::SharedMemory, 1), 0);
    let (handle, _) = open(&mut session, "data/a").expect("there");
    let memory = session.allocate(5 << 20).expect("memory");
    fake.node().replies_per_poll = 0;
    session.submit_read(handle, 0, memory, 0..10_000).expect("taken");
    session.kick();
    fake.restart();
    {
        let mut node = fake.node();
        (node.replies_per_poll, node.largest_region) = (3, 4 << 20);
    }
    let done = finish(&mut session).pop().expect("one");
    let error = done.result.expect_err("no memory");
    assert_eq!((error.kind(), done.memory.is_none()), (Kind::NoSpace, true), "{error}");
    assert!(error.context().contains("ask for some"), "{error}");
}

#[test]
fn a_call_after_an_idle_time_has_all_of_its_own() {
    let fake = Fake::new();
    let (mut session, handle) = reopening(&fake);
    fake.node().dead_rails.insert(0);
    session.submit_close(handle).expect("taken");
    session.kick();
    session.poll(&mut Vec::new());
    assert!(!session.is_connected());
    redial::tests::idle(session.redial.as_mut().expect("it connects again"));
    session.submit_ping().expect("taken");
    let mut completed = Vec::new();
    let dials = fake.node().dials.len();
    while fake.node().dials.len() == dials {
        session.poll(&mut completed);
    }
    assert!(completed.is_empty(), "one dial is no long time");
    fake.node().dead_rails.clear();
    completed.extend(finish(&mut session));
    assert!(completed.iter().all(|done| done.result.is_ok()) && completed.len() == 2);
}
