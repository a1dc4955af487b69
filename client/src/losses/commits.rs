//! What becomes of generations that were being written, and of COMMITs without an answer.

use extent::Kind;
use extent::wire::OpenMode;
use rdma::Fabric;

use super::{FABRICS, client, finish, finish_all, name, open, options, session, settle};
use crate::Session;
use crate::fake::Fake;

#[test]
fn a_generation_ends_with_its_connection() {
    for fabric in FABRICS {
        let fake = Fake::new();
        fake.add_file("data/a", 10_000);
        let client = client(&fake, fabric, &options());
        let writer = client.create(&name("data/a"), 0).expect("begun");
        writer.write_at(0, &[1; 1000]).expect("written");
        fake.restart();
        let error = writer.write_at(1000, &[1; 1000]).expect_err("lost");
        assert_eq!(error.kind(), Kind::Disconnected);
        assert!(error.context().contains("write all of it"), "{error}");
        let error = writer.commit(2000).err().expect("lost");
        assert!(error.context().contains("write all of it"), "{error}");
        assert_eq!(fake.node().generations["data/a"].0, 1);

        let writer = client.create(&name("data/a"), 0).expect("begun");
        writer.write_at(0, &[1; 1000]).expect("written");
        fake.node().lose_after = Some(0);
        let error = writer.commit(1000).err().expect("never sent, or never carried out");
        assert_eq!(error.kind(), Kind::Disconnected);
        let writer = client.create(&name("data/a"), 0).expect("begun");
        writer.write_at(0, &[1; 1000]).expect("written");
        writer.commit(1000).expect("committed");
        settle(&client);
        assert!(fake.node().handles.is_empty());
    }
}

#[test]
pub(super) fn a_commit_without_an_answer_is_looked_up() {
    let fake = Fake::new();
    fake.add_file("data/a", 10_000);
    let client = client(&fake, Fabric::Tcp, &options());
    let commit = |carried_out| {
        let writer = client.create(&name("data/a"), 0).expect("begun");
        writer.write_at(0, &[1; 1000]).expect("written");
        fake.node().lose_commit = Some(carried_out);
        writer.commit(1000)
    };
    let file = commit(true).expect("it is there");
    assert_eq!((file.generation().0, file.len()), (2, 1000));
    let mut out = [0; 1000];
    file.read_into(0, &mut out).expect("read");
    assert_eq!(out, [1; 1000]);

    let error = commit(false).err().expect("it is not there");
    assert_eq!(error.kind(), Kind::Disconnected);
    assert!(error.context().contains("open the file and look"), "{error}");
    assert_eq!(fake.node().generations["data/a"].0, 2, "a commit is never sent twice");
    drop(file);
    settle(&client);
    assert!(fake.node().handles.is_empty());
}

#[test]
pub(super) fn nobody_elses_generation_passes_for_ones_own() {
    let fake = Fake::new();
    let mut session = session(&fake, Fabric::Tcp, 1, &options());
    let (handle, _) = open(&mut session, "data/a", OpenMode::Write(0)).expect("begun");
    fake.node().lose_commit = Some(true);
    fake.node().dead_rails.insert(0);
    let ticket = session.submit_commit(handle, 0).expect("taken");
    session.kick();
    while session.is_connected() {
        session.poll(&mut Vec::new());
    }
    fake.node().put("data/a", vec![2; 500]);
    fake.node().dead_rails.clear();
    let error = finish(&mut session, ticket).result.expect_err("it is not the newest");
    assert!(error.context().contains("not known"), "{error}");
    let ticket = session.submit_stat(handle).expect("taken");
    let error = finish(&mut session, ticket).result.expect_err("what would it be of");
    assert!(error.context().contains("not known"), "{error}");
}

#[test]
pub(super) fn what_is_behind_a_commit_in_doubt_waits_for_it() {
    for carried_out in [false, true] {
        let fake = Fake::new();
        fake.node().credits = 1;
        let mut session = session(&fake, Fabric::Tcp, 1, &options());
        let (handle, _) = open(&mut session, "data/a", OpenMode::Write(0)).expect("begun");
        fake.node().lose_commit = Some(carried_out);
        session.submit_commit(handle, 0).expect("taken");
        session.submit_stat(handle).expect("taken");
        let memory = session.allocate(10).expect("memory");
        session.submit_write(handle, 0, memory, 0..10).expect("taken");
        session.submit_close(handle).expect("taken");
        session.kick();
        let [commit, stat, write, close] =
            <[_; 4]>::try_from(finish_all(&mut session, 4)).expect("four");
        let error = write.result.expect_err("what was written is committed, or gone");
        assert_eq!(error.kind(), Kind::Disconnected);
        close.result.expect("closed");
        for done in [commit, stat] {
            assert_eq!(done.result.is_ok(), carried_out);
        }
        assert!(fake.node().handles.is_empty());
    }
}

#[test]
fn two_commits_in_doubt_are_both_answered() {
    for later in
        [Session::submit_close, |session: &mut Session, handle| session.submit_commit(handle, 0)]
    {
        let fake = Fake::new();
        let mut session = session(&fake, Fabric::Tcp, 1, &options());
        let (handle, _) = open(&mut session, "data/a", OpenMode::Write(0)).expect("begun");
        session.submit_commit(handle, 0).expect("taken");
        later(&mut session, handle).expect("taken");
        session.kick();
        fake.restart();
        let done = finish_all(&mut session, 2);
        let error = done[0].result.as_ref().expect_err("never carried out");
        assert!(error.context().contains("open the file and look"), "{error}");
    }
}

#[test]
pub(super) fn a_file_that_is_closed_takes_no_commit_with_it() {
    let fake = Fake::new();
    let mut session = session(&fake, Fabric::Tcp, 1, &options());
    let (handle, _) = open(&mut session, "data/a", OpenMode::Write(0)).expect("begun");
    let commit = session.submit_commit(handle, 0).expect("taken");
    session.kick();
    fake.node().dead_rails.insert(0);
    fake.restart();
    let mut completed = Vec::new();
    session.poll(&mut completed);
    let close = session.submit_close(handle).expect("taken");
    session.expire(&[close], &Kind::Disconnected.error("no answer"));
    session.poll(&mut completed);
    completed.sort_by_key(|done| done.ticket);
    let seen: Vec<_> = completed.iter().map(|done| done.ticket).collect();
    assert_eq!(seen, [commit, close]);
    let error = completed[0].result.as_ref().expect_err("not known");
    assert!(error.context().contains("open the file and look"), "{error}");
}
