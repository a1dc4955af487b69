//! A node with as many sessions as there may be: all are served, and none much more than another.

#![expect(clippy::print_stdout, reason = "how even it was is for people")]

extern crate forebay_dataplane as dataplane;

#[path = "sessions/crowd.rs"]
mod crowd;
#[path = "bad_input/lab.rs"]
mod lab;
#[path = "sim/wired.rs"]
mod wired;

#[test]
fn twenty_four_thousand_sessions_are_served_alike() {
    lab::in_virtual_time(async {
        let sessions = 24_000;
        let (ahead, bytes) = crowd::serve(sessions, 128).await;
        println!("{sessions} sessions: at most {ahead} reads ahead of another, {bytes} bytes each");
    });
}
