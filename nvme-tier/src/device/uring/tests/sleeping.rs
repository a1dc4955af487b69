//! Waiting: for completions, for several at once, and for other descriptors.

use super::*;

#[test]
fn a_sleep_misses_no_completion() {
    let file = new_file("sleep");
    let mut device = queue(&[&file], false, 64).expect("a queue");
    let pool = pool(64);
    let (_silent, quiet) = UnixStream::pair().expect("sockets");
    let mut completions = Vec::new();
    for round in 0..200 {
        for tag in 0..=round % 64 {
            let command = match tag % 3 {
                0 => Command::Flush(DeviceIndex(0)),
                _ => {
                    let from = Source::Buffer(pool.take(1).expect("free"), 0..BLOCK);
                    Command::Write { at: at(tag), from }
                }
            };
            device.submit(Token(tag), command).expect("room");
        }
        while device.in_flight() > 0 {
            assert!(!device.sleep(&[quiet.as_fd()], Some(FOREVER)).expect("a sound queue"));
            device.poll(&mut completions);
        }
        assert_eq!(completions.drain(..).count() as u64, round % 64 + 1);
    }
}

#[test]
fn gathering_ends_when_there_is_nothing_more_to_come() {
    let file = new_file("gather");
    let mut device = queue(&[&file], false, 8).expect("a queue");
    let pool = pool(8);
    let mut completions = Vec::new();
    device.gather(3).expect("nothing to wait for");
    for wanted in [1, 5, 8, 100] {
        for tag in 0..8 {
            let from = Source::Buffer(pool.take(1).expect("free"), 0..BLOCK);
            device.submit(Token(tag), Command::Write { at: at(tag), from }).expect("room");
        }
        while completions.len() < wanted.min(8) {
            device.gather(wanted - completions.len()).expect("a sound queue");
            device.poll(&mut completions);
        }
        completions.extend(drain(&mut device));
        assert_eq!(completions.drain(..).count(), 8);
    }
}

#[test]
fn a_sleep_ends_for_another_descriptor_each_time_and_at_its_limit() {
    let file = new_file("others");
    let mut device = queue(&[&file], false, 4).expect("a queue");
    let pairs: Vec<_> = (0..MOST_OTHERS).map(|_| UnixStream::pair().expect("sockets")).collect();
    let others: Vec<_> = pairs.iter().map(|(_, watched)| watched.as_fd()).collect();
    for limit in [None, Some(FOREVER)] {
        for round in 0..3 * MOST_OTHERS {
            let (ringer, watched) = &pairs[round % MOST_OTHERS];
            thread::scope(|scope| {
                scope.spawn(|| (&*ringer).write_all(&[1]).expect("room"));
                while !device.sleep(&others, limit).expect("a sound queue") {}
            });
            (&*watched).read_exact(&mut [0]).expect("rung");
        }
    }
    while device.sleep(&others, Some(Duration::from_millis(1))).expect("a sound queue") {}
    let (ringer, watched) = UnixStream::pair().expect("sockets");
    let one_more = device.sleep(&[watched.as_fd()], Some(FOREVER));
    assert_eq!(one_more.expect_err("too many").kind(), Kind::Invalid);
    drop(ringer);
}

#[test]
fn a_watch_survives_a_move() {
    let file = new_file("watch-moved");
    let mut device = queue(&[&file], false, 4).expect("a queue");
    let (mut ringer, watched) = UnixStream::pair().expect("sockets");
    let brief = Some(Duration::from_millis(1));
    assert!(!device.sleep(&[watched.as_fd()], brief).expect("a sound queue"));
    ringer.write_all(&[1]).expect("room");
    thread::scope(|scope| {
        let elsewhere =
            || while !device.sleep(&[watched.as_fd()], Some(FOREVER)).expect("moves") {};
        scope.spawn(elsewhere).join().expect("the thread ends well");
    });
}
