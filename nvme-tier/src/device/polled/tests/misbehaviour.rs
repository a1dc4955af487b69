//! Controllers that do not do what they should: an error that says so, never a hang or a panic, and
//! no memory given back that may still be written.

use std::sync::atomic::Ordering;

use extent::Kind;

use super::model::BLOCK;
use super::*;

fn refused(behaviour: Behaviour) -> extent::Error {
    match open(behaviour) {
        Err(error) => error,
        Ok((_, controller)) => queue(&controller, 4).err().expect("must be refused"),
    }
}

#[test]
fn one_that_never_becomes_ready_is_given_up() {
    let error = refused(Behaviour { never_ready: true, ..Behaviour::default() });
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("become ready"), "{error}");
}

#[test]
fn one_that_answers_nothing_is_given_up() {
    let error = refused(Behaviour { mute: true, ..Behaviour::default() });
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("did not answer"), "{error}");
}

#[test]
fn nonsense_is_recognised() {
    let zeroes = Behaviour { identify: Some(|page| page.fill(0)), ..Behaviour::default() };
    let error = refused(zeroes);
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("update its firmware"), "{error}");
    let all_ones = Behaviour { capabilities: Some(u64::MAX), ..Behaviour::default() };
    assert!(refused(all_ones).to_string().contains("plugged in"));
    let nothing = Behaviour { capabilities: Some(0), ..Behaviour::default() };
    assert_eq!(refused(nothing).kind(), Kind::Corrupt);
    let large_pages =
        Behaviour { capabilities: Some(1 << 48 | 1 << 37 | 1 << 24 | 255), ..Behaviour::default() };
    assert_eq!(refused(large_pages).kind(), Kind::Unsupported);
    let odd_blocks = Behaviour { namespace: Some(|page| page[130] = 3), ..Behaviour::default() };
    assert_eq!(refused(odd_blocks).kind(), Kind::Corrupt);
    let empty = Behaviour { namespace: Some(|page| page[..8].fill(0)), ..Behaviour::default() };
    assert_eq!(refused(empty).kind(), Kind::Corrupt);
    let metadata = Behaviour { namespace: Some(|page| page[128] = 16), ..Behaviour::default() };
    assert_eq!(refused(metadata).kind(), Kind::Unsupported);
}

#[test]
fn one_with_too_few_queues_says_how_many_it_has() {
    let (_model, controller) =
        open(Behaviour { queues: Some(2), ..Behaviour::default() }).expect("comes up");
    let first = queue(&controller, 4).expect("one");
    let _second = queue(&controller, 4).expect("two");
    let error = queue(&controller, 4).err().expect("no third");
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains("only 2 I/O queues"), "{error}");
    drop(first);
    queue(&controller, 4).expect("one is free again");
}

#[test]
fn what_may_be_retried_is_and_the_rest_is_not() {
    let mut rig = Rig::new(Behaviour { status: Some((0x06, 2)), ..Behaviour::default() }, 4);
    rig.one(rig.write(0, 4096, 1)).result.expect("the third try succeeds");
    rig.model.change(|behaviour| behaviour.status = Some((0x06, 100)));
    let error = rig.one(rig.read(0, 4096)).result.expect_err("never succeeds");
    assert!(error.to_string().contains("Internal Error"), "{error}");
    rig.model.change(|behaviour| behaviour.status = Some((0x4281, 1)));
    let error = rig.one(rig.read(0, 4096)).result.expect_err("do not retry");
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("Unrecovered Read Error"), "{error}");
    assert!(error.to_string().contains("reading 4096 bytes at 0"), "{error}");
    rig.model.change(|behaviour| behaviour.status = None);
    assert_eq!(bytes(rig.one(rig.read(0, 4096))), [1; 4096]);
}

#[test]
fn a_command_that_does_not_end_is_aborted_and_sent_again() {
    let mut rig = Rig::new(Behaviour { swallow: 1, ..Behaviour::default() }, 4);
    rig.one(rig.write(0, 4096, 7)).result.expect("written after all");
    assert!(rig.model.aborts.load(Ordering::Relaxed) > 0);
    assert_eq!(bytes(rig.one(rig.read(0, 4096))), [7; 4096]);
}

#[test]
fn one_that_completes_what_is_not_there_is_reset() {
    for behaviour in [
        Behaviour { phantom: 1, ..Behaviour::default() },
        Behaviour { twice: 1, ..Behaviour::default() },
        // While the command waits to be sent again.
        Behaviour { twice: 1, status: Some((0x06, 1)), ..Behaviour::default() },
    ] {
        let mut rig = Rig::new(behaviour, 4);
        rig.one(rig.write(4096, 4096, 9)).result.expect("written");
        rig.wait_until("a reset", |rig| rig.model.resets.load(Ordering::Relaxed) == 1);
        assert_eq!(bytes(rig.one(rig.read(4096, 4096))), [9; 4096]);
    }
}

#[test]
fn after_a_fatal_error_reads_and_writes_go_on_and_a_flush_fails() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    rig.model.change(|behaviour| behaviour.swallow = 3);
    let commands = [rig.write(0, 8192, 3), rig.read(8192, 4096), Command::Flush(ZERO)];
    for (token, command) in (0..).zip(commands) {
        rig.submit(token, command);
    }
    rig.queue.kick();
    rig.wait_until("all are swallowed", |rig| rig.model.swallowed() == 3);
    rig.model.break_down();
    let mut done = rig.drain();
    done.sort_by_key(|completion| completion.token.0);
    assert!(done[0].result.is_ok() && done[1].result.is_ok(), "{done:?}");
    let error = done.remove(2).result.expect_err("nobody knows what a reset did to the cache");
    assert!(error.to_string().contains("was reset meanwhile"), "{error}");
    assert_eq!(bytes(rig.one(rig.read(0, 8192))), [3; 8192]);
}

#[test]
fn one_that_is_pulled_fails_all_commands_from_then_on() {
    let mut rig = Rig::new(Behaviour { swallow: 1, ..Behaviour::default() }, 4);
    rig.submit(1, rig.read(0, 4096));
    rig.queue.kick();
    rig.model.pull();
    let error = rig.drain().remove(0).result.expect_err("pulled");
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("pulled"), "{error}");
    rig.one(rig.write(0, 4096, 1)).result.expect_err("still gone");
    queue(&rig.controller, 4).err().expect("no new queue either");
}

#[test]
fn one_that_the_kernel_wants_back_is_given_back() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    rig.one(rig.write(0, 4096, 1)).result.expect("written");
    rig.model.want_back();
    rig.wait_until("a refusal", |rig| rig.controller.core().life().is_dead());
    let error = rig.one(rig.read(0, 4096)).result.expect_err("given back");
    assert!(error.to_string().contains("the kernel takes it away"), "{error}");
}

#[test]
fn one_that_does_not_stop_is_reset_as_a_function() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    rig.model.change(|behaviour| behaviour.never_stops = true);
    rig.model.break_down();
    rig.wait_until("a reset", |rig| rig.model.resets.load(Ordering::Relaxed) > 0);
    assert!(
        rig.one(rig.write(0, 4096, 1)).result.is_ok() || rig.controller.core().life().is_dead()
    );
}

#[test]
fn a_warning_of_the_device_is_heard() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    assert_eq!(rig.controller.health().map(|health| health.critical_warning), Some(0));
    rig.model.warn(1);
    rig.wait_until("the warning", |rig| {
        rig.controller.health().is_some_and(|health| health.critical_warning == 1)
    });
    // And the next one, too.
    rig.model.warn(4);
    rig.wait_until("another", |rig| {
        rig.controller.health().is_some_and(|health| health.critical_warning == 4)
    });
}

#[test]
fn protected_blocks_that_rot_are_found_by_us() {
    let mut rig = Rig::new(Behaviour { protection: true, ..Behaviour::default() }, 4);
    rig.one(rig.write(0, 16384, 5)).result.expect("the device finds our guards right");
    assert_eq!(bytes(rig.one(rig.read(0, 16384))), [5; 16384]);
    assert_eq!(bytes(rig.one(rig.read(65536, 4096))), [0; 4096], "never written");
    rig.model.change(|behaviour| behaviour.rot = 1);
    let error = rig.one(rig.read(0, 4096)).result.expect_err("flipped on the way");
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("T10 guard"), "{error}");
    rig.model.rot(3 * BLOCK + 7);
    let error = rig.one(rig.read(0, 4096)).result.expect_err("flipped where it lies");
    assert!(error.to_string().contains("block 3 fails"), "{error}");
}

#[test]
fn a_flush_that_failed_is_not_tried_again() {
    let mut rig = Rig::new(Behaviour { status: Some((0x06, 1)), ..Behaviour::default() }, 4);
    let error = rig.one(Command::Flush(ZERO)).result.expect_err("it failed once");
    assert!(error.to_string().contains("Internal Error"), "{error}");
    rig.one(Command::Flush(ZERO)).result.expect("another one is another matter");
}

#[test]
fn the_first_flush_after_a_reset_fails_and_vouches_for_nothing() {
    for polls_between in [false, true] {
        let mut rig = Rig::new(Behaviour::default(), 4);
        rig.one(rig.write(0, 4096, 1)).result.expect("written");
        rig.one(Command::Flush(ZERO)).result.expect("flushed");
        rig.model.break_down();
        let core = Arc::clone(rig.controller.core());
        while core.life().resets() == 0 {
            std::thread::yield_now();
        }
        if polls_between {
            rig.one(rig.read(0, 4096)).result.expect("reads go on");
        }
        let error = rig.one(Command::Flush(ZERO)).result.expect_err("the cache may be gone");
        assert!(error.to_string().contains("reset"), "{error}");
        rig.one(Command::Flush(ZERO)).result.expect("from then on all is as before");
    }
}

#[test]
fn commands_end_although_no_queue_is_made_after_a_reset() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    rig.model.change(|behaviour| (behaviour.swallow, behaviour.no_queues) = (1, true));
    rig.submit(1, rig.read(0, 4096));
    rig.queue.kick();
    rig.wait_until("it is swallowed", |rig| rig.model.swallowed() == 1);
    rig.model.break_down();
    let error = rig.drain().remove(0).result.expect_err("no queue");
    assert!(error.to_string().contains("Invalid Queue Identifier"), "{error}");
    rig.model.change(|behaviour| behaviour.no_queues = false);
    rig.one(rig.read(0, 4096)).result.expect("a later attempt");
    assert_eq!(rig.controller.core().life().resets(), 1);
}

#[test]
fn one_that_breaks_down_over_and_over_is_given_up() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    let begin = clock::now();
    while !rig.controller.core().life().is_dead() {
        if rig.controller.core().life().is_working() {
            rig.model.break_down();
            let resets = rig.controller.core().life();
            while rig.controller.core().life() == resets {
                std::thread::yield_now();
            }
        }
        assert!(begin.elapsed() < PATIENCE, "reset for ever");
        std::thread::yield_now();
    }
    let error = rig.one(rig.read(0, 4096)).result.expect_err("lost");
    assert!(error.to_string().contains("is lost"), "{error}");
}

#[test]
fn one_without_a_health_log_works_all_the_same() {
    let mut rig = Rig::new(Behaviour { no_logs: true, ..Behaviour::default() }, 4);
    assert_eq!(rig.controller.health(), None);
    let ticks = rig.controller.core().ticks();
    // Past the next reading of the log.
    rig.wait_until("a minute's ticks", |rig| rig.controller.core().ticks() > ticks + 700);
    rig.one(rig.read(0, 4096)).result.expect("read");
    assert_eq!(rig.controller.core().life().resets(), 0);
}

#[test]
fn one_that_is_lost_is_still_given_back() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    rig.model.change(|behaviour| behaviour.never_ready = true);
    rig.model.break_down();
    rig.wait_until("it is lost", |rig| rig.controller.core().life().is_dead());
    rig.model.want_back();
    rig.wait_until("it is given back", |rig| rig.model.released.load(Ordering::Relaxed));
}

#[test]
fn a_namespace_that_somebody_else_changes_is_not_touched_any_more() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    rig.one(rig.write(0, 4096, 1)).result.expect("written");
    rig.model.change(|behaviour| behaviour.namespace = Some(|page| page[130] = 12));
    rig.model.break_down();
    rig.wait_until("it is given up", |rig| rig.controller.core().life().is_dead());
    let error = rig.one(rig.write(0, 4096, 2)).result.expect_err("blocks of another size");
    assert!(error.to_string().contains("changed by somebody else"), "{error}");
}

#[test]
fn patience_is_as_long_as_it_was_told() {
    let options = |seconds: [u64; 2], ready| {
        let [command, reset] = seconds.map(|seconds| Some(Duration::from_secs(seconds)));
        ControllerOptions::of(&Timeouts { command, reset, resets_per_minute: Some(2), ready })
    };
    let told = options([10, 25], None);
    assert_eq!((told.abort_ticks, told.reset_ticks, told.resets_per_minute), (100, 250, 2));

    let ready_limit = |ready| {
        let model = Model::start(Behaviour::default());
        let host: Arc<dyn crate::device::polled::Host> = model;
        let options = options([10, 25], ready);
        let controller = Controller::open(host, &Arc::default(), options).expect("comes up");
        controller.core().ready_limit()
    };
    let minute = Duration::from_secs(60);
    assert_eq!(ready_limit(None), Duration::from_millis(500), "what it asks for");
    assert_eq!(ready_limit(Some(minute)), minute);

    let (model, controller) = {
        let model = Model::start(Behaviour::default());
        let host: Arc<dyn crate::device::polled::Host> = Arc::clone(&model) as _;
        let told = ControllerOptions { tick: Duration::from_millis(2), ..told };
        let controller = Controller::open(host, &Arc::default(), told).expect("comes up");
        (model, controller)
    };
    let core = Arc::clone(controller.core());
    (0..2).for_each(|_| core.reset("told to"));
    assert!(core.life().is_working());
    core.reset("once too often");
    assert!(core.life().is_dead() && core.obituary().to_string().contains("reset 2 times"));
    drop((controller, model));
}
