//! Capsules and connections that make no sense.

use super::super::completion::WorkStatus;
use super::super::send_queue::{Message, Work};
use super::victim::Victim;
use super::{Ask, Intruder, Ordering, reaches};

/// "Transport retry counter exceeded".
const UNACKNOWLEDGED: WorkStatus = WorkStatus(12);

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn capsules_of_no_length_end_their_session_alone() {
    let victim = Victim::new();
    let mut bystander = Intruder::new(victim.address);
    for (count, length) in [0, 1, 63, 65, 127].into_iter().enumerate() {
        let mut intruder = Intruder::new(victim.address);
        let sent = intruder.try_out(Work::Send(Message::new(&vec![3; length])));
        // The node may end the session before its device has acknowledged the message.
        assert!([WorkStatus::SUCCESS, UNACKNOWLEDGED].contains(&sent), "{sent:?}");
        victim.closes(count + 1);
    }
    // One that is longer than a receive is the device's to refuse.
    let mut intruder = Intruder::new(victim.address);
    assert_ne!(intruder.try_out(Work::Send(Message::new(&[3; 200]))), WorkStatus::SUCCESS);
    victim.closes(6);
    assert_eq!(victim.seen.requests.load(Ordering::Acquire), 0);
    let sent = bystander.try_out(Work::Send(Message::new(&[0; 64])));
    assert_eq!(sent, WorkStatus::SUCCESS, "others go on");
    reaches(&victim.seen.requests, 1);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn connections_that_a_node_cannot_live_with_are_refused() {
    let victim = Victim::new();
    for (reads_in, patience) in [(0, 6), (1, 7)] {
        let ask = Ask { reads_in, patience, proof: None };
        let refused = Intruder::connect(victim.address, ask);
        let error = refused.map(drop).expect_err("refused");
        assert_eq!(error.kind(), extent::Kind::Invalid, "{error}");
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn receives_outlive_the_sessions_that_used_them() {
    let victim = Victim::new();
    // Each leaves with requests that nobody looked at; together more than there are receives.
    for count in 1..=40 {
        let mut intruder = Intruder::new(victim.address);
        let bad = [1].into_iter().chain(std::iter::repeat_n(64, 120));
        bad.for_each(|length| {
            intruder.send.push(Work::Send(Message::new(&vec![3; length])));
        });
        // It may be cut off in the middle.
        while intruder.send.wants_to_post() {
            let mut completions = Vec::new();
            intruder.queue.poll(&mut completions).expect("a sound queue");
            if completions.iter().any(|completion| completion.status != WorkStatus::SUCCESS) {
                break;
            }
            for completion in completions {
                intruder.send.complete(completion.id, &mut Vec::new());
            }
            intruder.send.post(16, &mut intruder.pair).expect("posted");
        }
        victim.closes(count);
    }
    let mut bystander = Intruder::new(victim.address);
    let before = victim.seen.requests.load(Ordering::Acquire);
    assert_eq!(bystander.try_out(Work::Send(Message::new(&[0; 64]))), WorkStatus::SUCCESS);
    reaches(&victim.seen.requests, before + 1);
}
