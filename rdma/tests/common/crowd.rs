//! Many requests, and many clients, of one node.

use extent::wire::{Command, Segments};
use forebay_rdma::{Channel, Fabric, Transport};

use super::network::READ;
use super::{PIECE_BYTES, TestClient, TestNode, pattern, range, until};

const BLOCK: usize = 4096;

/// So many reads, so many at a time, each of another place, into memory of its own.
pub(crate) fn many_reads<T: Transport, C: Channel>(
    node: &mut TestNode<T>,
    mut client: TestClient<C>,
    (count, at_once): (usize, usize),
) {
    let file = pattern(1 << 20);
    node.add_file("s/file", file.clone());
    let mut turn = || {
        node.step();
    };
    let handle = client.open("s/file", READ, &mut turn).expect("connected").value;
    let offset = |index: usize| index * 7919 % ((1 << 20) - BLOCK);
    for first in (0..count).step_by(at_once) {
        for index in first..first + at_once {
            let into = Segments::one(client.segment(index * BLOCK, BLOCK));
            client.send(Command::Read { handle, range: range(offset(index), BLOCK), into }, None);
        }
        let replies = client.finish(&mut turn).expect("connected");
        assert!(replies.len() == at_once && replies.values().all(|reply| reply.value == 4096));
    }
    for index in 0..count {
        let expected = &file[offset(index)..offset(index) + BLOCK];
        assert!(client.bytes(index * BLOCK, BLOCK) == expected, "request {index}");
    }
}

/// Clients that all read before any of them gets to hear, and of whom all but ten then leave.
pub(crate) fn many_clients<T: Transport, C: Channel>(
    node: &mut TestNode<T>,
    mut clients: Vec<TestClient<C>>,
    fabric: Fabric,
) {
    let (count, file) = (clients.len(), pattern(300_000));
    node.add_file("s/file", file.clone());
    assert_eq!(node.transport.sessions(), count);
    let mut turn = || {
        node.step();
    };
    for (index, client) in clients.iter_mut().enumerate() {
        let handle = client.open("s/file", READ, &mut turn).expect("connected").value;
        let into = Segments::one(client.segment(0, PIECE_BYTES));
        client.send(Command::Read { handle, range: range(index * 1000, PIECE_BYTES), into }, None);
        client.channel.kick().expect("connected");
    }
    for (index, client) in clients.iter_mut().enumerate() {
        client.finish(&mut turn).expect("connected");
        let expected = &file[index * 1000..][..PIECE_BYTES];
        assert!(client.bytes(0, PIECE_BYTES) == expected, "client {index}");
    }
    clients.truncate(10);
    until(node, |node| node.closed.len() == count - 10);
    assert_eq!(node.transport.sessions(), 10);
    let mut numbers: Vec<_> = node.opened.iter().map(|(session, _)| *session).collect();
    assert!(numbers.iter().all(|session| session.fabric() == fabric));
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count);
}
