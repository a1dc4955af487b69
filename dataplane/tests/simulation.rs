//! A whole node in one thread: simulated devices, fabric, silo and clock, all from one seed.
//!
//! Two clients read, write and commit while extents are promoted, released and demoted, devices
//! and the silo fail now and then, and sessions are cut. In the end the power goes, a random part
//! of what was not flushed survives, and the node starts again. All the time, and after the
//! restart, every byte that a client gets is compared with a model:
//!
//! - an acknowledged commit is what readers see, whole, until the next one, also after the cut;
//! - a commit that was under way is there whole or not at all;
//! - a read gives the right bytes or an error, never others.
//!
//! A failing seed replays exactly: `FOREBAY_SIM_SEEDS=17..18 cargo test -p forebay-dataplane --test simulation`.

#![expect(clippy::print_stderr, reason = "a failing run names its seed")]

extern crate forebay_dataplane as dataplane;

#[path = "sim/model.rs"]
mod model;
#[path = "sim/network.rs"]
mod network;
#[path = "sim/player.rs"]
mod player;
#[path = "sim/wired.rs"]
mod wired;
#[path = "sim/world.rs"]
mod world;

use std::ops::Range;

#[test]
fn what_clients_see_is_what_was_committed() {
    for seed in seeds(0..12) {
        let report = OnPanic(seed);
        world::run(seed);
        drop(report);
    }
}

fn seeds(default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("FOREBAY_SIM_SEEDS") else { return default };
    let parsed = match text.split_once("..") {
        Some((from, to)) => from.parse().ok().zip(to.parse().ok()),
        None => Some(0).zip(text.parse().ok()),
    };
    let (from, to) = parsed.expect("FOREBAY_SIM_SEEDS is a number, or two with .. between them");
    from..to
}

/// Names the seed when its run fails.
struct OnPanic(u64);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("seed {seed} failed; replay it with FOREBAY_SIM_SEEDS={seed}..{}", seed + 1);
        }
    }
}
