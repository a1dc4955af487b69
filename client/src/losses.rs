//! What programs see of lost connections. With the feature `seeded-bugs`, each mistake that
//! [`crate::bugs`] knows is made, and one of these tests must fail for it.

mod commits;
mod views;

use std::time::Duration;

use extent::wire::{OpenBody, OpenMode};
use extent::{FileName, Generation, Kind, Result};
use rdma::Fabric;

use crate::fake::Fake;
use crate::{Client, Completed, Options, Reconnect, Session, Ticket};

const FABRICS: [Fabric; 3] = [Fabric::Tcp, Fabric::SharedMemory, Fabric::Verbs];

fn name(text: &str) -> FileName {
    text.parse().expect("a good name")
}

/// Pauses would only make the tests slow.
fn options() -> Options {
    let reconnect = Reconnect {
        first_pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
        ..Reconnect::default()
    };
    Options { reconnect: Some(reconnect), ..Options::default() }
}

fn session(fake: &Fake, fabric: Fabric, rails: usize, options: &Options) -> Session {
    let session = Session::connect(fake.channel(fabric), options).expect("a node that answers");
    session.reconnecting(fake.connector(fabric, rails), 0)
}

fn client(fake: &Fake, fabric: Fabric, options: &Options) -> Client {
    Client::over(session(fake, fabric, 1, options), options)
}

/// Drives the session until an operation ends.
fn finish(session: &mut Session, ticket: Ticket) -> Completed {
    let mut completed = Vec::new();
    session.kick();
    while completed.is_empty() {
        session.poll(&mut completed);
        session.wait(Duration::ZERO);
    }
    assert_eq!(completed.len(), 1);
    let done = completed.pop().expect("just seen");
    assert_eq!(done.ticket, ticket);
    done
}

fn open(session: &mut Session, text: &str, mode: OpenMode) -> Result<(u64, OpenBody)> {
    let ticket = session.submit_open(&name(text), mode)?;
    finish(session, ticket).opened()
}

fn settle(client: &Client) {
    client.ping().expect("there");
    client.ping().expect("there");
}

#[test]
fn reads_go_on_after_a_restart() {
    for fabric in FABRICS {
        let fake = Fake::new();
        let bytes = fake.add_file("data/a", 100_000);
        let client = client(&fake, fabric, &options());
        let file = client.open(&name("data/a")).expect("there");
        for round in 1..4u64 {
            let fetches: Vec<_> = (0..20u64)
                .map(|i| file.fetch(i * 4000, client.alloc(9000).expect("memory")))
                .collect();
            fake.node().lose_after = Some(5);
            for (i, fetched) in client.read_batch(fetches).wait().into_iter().enumerate() {
                assert_eq!(fetched.result.expect("read").bytes, 9000);
                fake.node().write_late();
                assert!(fetched.memory.as_slice() == &bytes[i * 4000..i * 4000 + 9000]);
            }
            let stats = client.stats();
            assert_eq!((stats.reconnections, fake.node().channels), (round, 1));
            assert!(stats.repeated_requests >= round, "{stats:?}");
        }
        let mut out = vec![0; 90_000];
        fake.node().lose_after = Some(3);
        file.read_into(5, &mut out).expect("read");
        assert!(out == bytes[5..90_005]);
        drop(file);
        settle(&client);
        assert!(fake.node().handles.is_empty());
        assert!(fake.node().regions.len() <= 4, "what was lost is not kept");
    }
}

#[test]
fn memory_stays_valid_over_connections() {
    for fabric in FABRICS {
        let fake = Fake::new();
        let bytes = fake.add_file("data/a", 10_000);
        let client = client(&fake, fabric, &options());
        let file = client.open(&name("data/a")).expect("there");
        let mut memory = client.alloc(3000).expect("memory");
        memory.as_mut_slice().fill(7);
        let mut other = memory.split_off(1000);
        fake.restart();
        assert!(memory.as_slice().iter().all(|byte| *byte == 7));
        file.read_at(500, &mut memory, 10..900).expect("read");
        assert_eq!(&memory.as_slice()[10..900], &bytes[500..1390]);
        assert!(memory.as_slice()[..10].iter().all(|byte| *byte == 7));
        assert!(memory.as_slice()[900..].iter().all(|byte| *byte == 7));
        file.read_at(0, &mut other, ..).expect("read");
        assert_eq!(other.as_slice(), &bytes[..2000]);
        assert_eq!((memory.len(), other.len()), (1000, 2000));

        fake.restart();
        other.as_mut_slice().fill(9);
        let writer = client.create(&name("data/new"), 0).expect("begun");
        writer.write_memory_at(0, &mut other, ..).expect("written");
        writer.commit(2000).expect("committed");
        assert!(fake.node().files["data/new"].iter().all(|byte| *byte == 9));
    }
}

#[test]
fn a_file_is_open_at_its_generation_or_not_at_all() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let client = client(&fake, Fabric::Tcp, &options());
    let file = client.open(&name("data/a")).expect("there");
    let mut memory = client.alloc(100).expect("memory");
    fake.restart();
    file.read_at(0, &mut memory, ..).expect("the same generation");

    fake.node().put("data/a", vec![1; 10_000]);
    fake.restart();
    let error = file.read_at(0, &mut memory, ..).expect_err("another generation");
    assert_eq!(error.kind(), Kind::Stale);
    assert!(error.context().contains("open it again"), "{error}");
    assert_eq!(memory.len(), 100);
    assert_eq!(file.stat().expect_err("another generation").kind(), Kind::Stale);
    drop(file);
    let file = client.open(&name("data/a")).expect("there");
    file.read_at(0, &mut memory, ..).expect("opened again");
    drop(file);
    settle(&client);
    assert!(fake.node().handles.is_empty());
}

#[test]
fn a_file_that_was_forgotten_meanwhile_is_another_one() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let client = client(&fake, Fabric::Tcp, &options());
    let file = client.open(&name("data/a")).expect("there");
    fake.node().generations.remove("data/a");
    fake.node().put("data/a", vec![1; 10_000]);
    fake.restart();
    let error = file.read_into(0, &mut [0; 100]).expect_err("other bytes");
    assert_eq!((file.generation().0, error.kind()), (1, Kind::Stale));
    fake.node().generations.remove("data/a");
    fake.restart();
    assert_eq!(file.read_into(0, &mut [0; 100]).expect_err("gone").kind(), Kind::Stale);
}

#[test]
fn a_request_that_ends_every_connection_is_not_sent_for_ever() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 10_000);
    let mut options = options();
    options.timeout = Duration::from_secs(10);
    let client = client(&fake, Fabric::Tcp, &options);
    let file = client.open(&name("data/a")).expect("there");
    fake.node().poison = Some(4096);
    let error = file.read_into(4096, &mut [0; 10]).expect_err("poison");
    assert_eq!(error.kind(), Kind::Disconnected);
    assert!(error.context().contains("not sent again"), "{error}");
    let most = u64::from(Reconnect::default().repeats);
    assert_eq!(client.stats().repeated_requests, most);
    let mut out = [0; 10];
    file.read_into(0, &mut out).expect("read");
    assert_eq!(out, bytes[..10]);
}

#[test]
fn a_node_that_stays_away_is_given_up_until_somebody_asks_again() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 10_000);
    let mut options = options();
    options.reconnect =
        options.reconnect.map(|reconnect| Reconnect { give_up_after: Duration::ZERO, ..reconnect });
    let client = client(&fake, Fabric::Tcp, &options);
    let file = client.open(&name("data/a")).expect("there");
    let writer = client.create(&name("data/b"), 0).expect("begun");
    let mut memory = client.alloc(100).expect("memory");
    fake.node().dead_rails.insert(0);
    fake.restart();
    for _ in 0..2 {
        let error = file.read_at(0, &mut memory, ..).expect_err("away");
        assert_eq!(error.kind(), Kind::Disconnected);
        for part in ["cable fell out", "is it up", "nobody listens"] {
            assert!(error.context().contains(part), "{error}");
        }
        assert_eq!(memory.len(), 100);
    }
    assert_eq!(client.alloc(100 << 20).expect_err("away").kind(), Kind::Disconnected);
    drop(writer);
    fake.node().dead_rails.clear();
    file.read_at(0, &mut memory, ..).expect("back");
    assert_eq!(memory.as_slice(), &bytes[..100]);
    settle(&client);
    let node = fake.node();
    assert_eq!((node.channels, node.handles.len()), (1, 1));
}

#[test]
fn rails_take_turns() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 10_000);
    let mut session = session(&fake, Fabric::Tcp, 3, &options());
    let (handle, _) = open(&mut session, "data/a", OpenMode::Read(Generation(0))).expect("there");
    let read = |session: &mut Session, memory| {
        let ticket = session.submit_read(handle, 0, memory, 0..100).expect("taken");
        let done = finish(session, ticket);
        done.result.expect("read");
        let memory = done.memory.expect("given back");
        assert_eq!(memory.as_slice(), &bytes[..100]);
        memory
    };
    let mut memory = session.allocate(100).expect("memory");
    for (dead, dials) in [(vec![], vec![1]), (vec![2], vec![2, 0]), (vec![1, 2], vec![1, 2, 0])] {
        fake.node().dead_rails = dead.into_iter().collect();
        fake.node().dials.clear();
        fake.restart();
        memory = read(&mut session, memory);
        assert_eq!(fake.node().dials, dials);
    }
    assert_eq!(session.rail(), Some((0, "rail 0".to_owned())));
    fake.node().dead_rails.clear();
    fake.node().dials.clear();
    fake.restart();
    read(&mut session, memory);
    assert_eq!(fake.node().dials, [1], "what was dead is tried again");
}

#[test]
fn a_call_in_vain_costs_a_connection_and_nobody_elses_reads() {
    for (fabric, next, back) in [
        (Fabric::SharedMemory, Fabric::SharedMemory, 0),
        (Fabric::SharedMemory, Fabric::Tcp, 0),
        (Fabric::Tcp, Fabric::Tcp, 4000),
        (Fabric::Verbs, Fabric::Verbs, 4000),
    ] {
        let fake = Fake::new();
        let bytes = fake.add_file("data/a", 10_000);
        let session = Session::connect(fake.channel(fabric), &options()).expect("a node");
        let mut session = session.reconnecting(fake.connector(next, 1), 0);
        let read = OpenMode::Read(Generation(0));
        let (handle, _) = open(&mut session, "data/a", read).expect("there");
        fake.node().replies_per_poll = 0;
        let memory = session.allocate(4000).expect("memory");
        let late = session.submit_read(handle, 0, memory, 0..4000).expect("taken");
        let memory = session.allocate(4000).expect("memory");
        let other = session.submit_read(handle, 4000, memory, 0..4000).expect("taken");
        session.kick();
        session.expire(&[late], &Kind::Disconnected.error("no answer"));
        let mut completed = Vec::new();
        session.poll(&mut completed);
        assert_eq!((completed.len(), completed[0].ticket), (1, late));
        let done = completed.pop().expect("just seen");
        assert!(done.result.expect_err("too late").context().contains("no answer"));
        let mut memory = done.memory.unwrap_or_default();
        assert_eq!(memory.len(), back);
        memory.as_mut_slice().fill(3);
        fake.node().write_late();
        assert!(memory.as_slice().iter().all(|byte| *byte == 3), "the old node is cut off");
        fake.node().replies_per_poll = 3;
        let done = finish(&mut session, other);
        done.result.expect("sent again");
        assert_eq!(session.fabric(), next);
        let memory = done.memory.expect("given back");
        fake.node().write_late();
        assert_eq!(memory.as_slice(), &bytes[4000..8000]);
    }
}

#[test]
fn a_loss_while_files_are_opened_again_costs_no_file() {
    for fabric in FABRICS {
        for lose_after in 0..6 {
            let fake = Fake::new();
            let bytes = fake.add_file("data/a", 10_000);
            let client = client(&fake, fabric, &options());
            let file = client.open(&name("data/a")).expect("there");
            let mut memory = client.alloc(100).expect("memory");
            fake.restart();
            fake.node().lose_after = Some(lose_after);
            file.read_at(0, &mut memory, ..).expect("the same generation is there");
            assert_eq!(memory.as_slice(), &bytes[..100], "{fabric:?} {lose_after}");
        }
    }
}

/// Drives the session until so many have ended, and no further than is ever needed.
fn finish_all(session: &mut Session, count: usize) -> Vec<Completed> {
    let mut completed = Vec::new();
    for _ in 0..10_000 {
        session.poll(&mut completed);
        if completed.len() >= count && session.is_connected() {
            break;
        }
    }
    assert_eq!((completed.len(), session.outstanding()), (count, 0), "each is answered once");
    completed.sort_by_key(|done| done.ticket);
    completed
}

#[test]
fn a_connection_whose_requests_all_hang_is_given_up() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let mut session = session(&fake, Fabric::Tcp, 1, &options());
    let (handle, _) = open(&mut session, "data/a", OpenMode::Read(Generation(0))).expect("there");
    fake.node().replies_per_poll = 0;
    for _ in 0..fake.node().credits {
        let memory = session.allocate(100).expect("memory");
        session.submit_read(handle, 0, memory, 0..100).expect("taken");
    }
    let late = session.submit_ping().expect("taken");
    session.kick();
    session.expire(&[late], &Kind::Disconnected.error("no answer"));
    assert!(!session.is_connected(), "nothing will ever be sent over it");
    fake.node().replies_per_poll = 3;
    let done = finish_all(&mut session, 9);
    assert_eq!(done.iter().filter(|done| done.result.is_ok()).count(), 8, "reads are repeated");
}

#[test]
fn a_read_hears_what_became_of_its_file() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let mut session = session(&fake, Fabric::Tcp, 1, &options());
    let (handle, _) = open(&mut session, "data/a", OpenMode::Read(Generation(0))).expect("there");
    fake.node().put("data/a", vec![1; 10_000]);
    fake.restart();
    let stat = session.submit_stat(handle).expect("taken");
    assert_eq!(finish(&mut session, stat).result.expect_err("other").kind(), Kind::Stale);
    session.submit_stat(handle).expect("taken");
    fake.restart();
    let done = finish_all(&mut session, 1);
    let error = done[0].result.as_ref().expect_err("still another");
    assert_eq!(error.kind(), Kind::Stale, "{error}");
}

#[cfg(feature = "seeded-bugs")]
#[test]
fn every_mistake_is_noticed() {
    use crate::bugs::{Bug, during};
    use crate::device::tests as device;

    const SCENES: &[(&str, fn())] = &[
        ("reads", reads_go_on_after_a_restart),
        ("generation", a_file_is_open_at_its_generation_or_not_at_all),
        ("forgotten", a_file_that_was_forgotten_meanwhile_is_another_one),
        ("commit", commits::a_commit_without_an_answer_is_looked_up),
        ("ours", commits::nobody_elses_generation_passes_for_ones_own),
        ("poison", a_request_that_ends_every_connection_is_not_sent_for_ever),
        ("in vain", a_call_in_vain_costs_a_connection_and_nobody_elses_reads),
        ("second loss", a_loss_while_files_are_opened_again_costs_no_file),
        ("behind", commits::what_is_behind_a_commit_in_doubt_waits_for_it),
        ("closed", commits::a_file_that_is_closed_takes_no_commit_with_it),
        ("idle", crate::session::redial_tests::time_in_which_nobody_wanted_anything_does_not_count),
        ("refused", crate::session::redial_tests::one_refusal_is_not_the_last_word),
        ("silo", crate::session::a_silo_that_hangs_holds_nobody_up_for_ever),
        ("dial", crate::session::redial_tests::a_connection_that_hangs_is_a_failure),
        ("view", views::a_read_never_leaves_memory_that_is_known_by_its_address),
        ("hang", a_connection_whose_requests_all_hang_is_given_up),
        ("device: odd ranges", device::odd_ranges_arrive),
        ("device: done", device::a_read_is_over_when_the_device_has_the_bytes),
        ("device: late", device::failures::late_failures_are_told_once),
        ("device: hangs", device::failures::a_device_that_hangs_is_not_waited_for_for_ever),
        (
            "device: failed reads",
            device::failures::what_a_node_fails_to_read_is_an_error_and_costs_no_piece,
        ),
        ("device: strict local", device::local::strict_policies_hold_for_local_files),
        ("device: local done", device::local::a_local_read_is_over_when_the_device_has_the_bytes),
        ("direct: lost writes", device::direct::writes_that_get_lost_are_noticed),
        ("direct: same address", device::direct::other_memory_at_an_address_is_other_memory),
        ("direct: away", device::direct::a_node_that_goes_away_costs_time_only),
        ("direct: lost writes later", device::direct::another_connection_is_looked_at_again),
        ("direct: streams", device::direct::what_a_stream_still_does_comes_first),
        ("direct: flushed", device::direct::the_device_is_told_of_what_was_written),
        ("direct: given back", device::direct::nothing_is_claimed_before_it_was_seen),
        ("nearly right", crate::session::twisted::replies_that_are_nearly_right),
    ];
    let fails = |bug, scene: fn()| during(bug, || std::panic::catch_unwind(scene).is_err());
    for (name, scene) in SCENES {
        assert!(!fails(None, *scene), "{name} fails without any mistake");
    }
    for bug in Bug::ALL {
        let found = SCENES.iter().find(|(_, scene)| fails(Some(*bug), *scene));
        assert!(found.is_some(), "{bug:?} is not noticed");
    }
}
