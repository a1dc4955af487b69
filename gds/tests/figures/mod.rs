//! Figures as ratios: two ways of doing the same, by turns.

use std::time::{Duration, Instant};

/// How often each way is done.
const ROUNDS: usize = 9;

/// Does both ways by turns, after once each for nothing: the one's time over the other's, its median and its
/// range.
pub(crate) fn compare<T, U>(mut one: impl FnMut() -> T, mut other: impl FnMut() -> U) -> String {
    let mut one = || drop(one());
    let mut other = || drop(other());
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (way, times) in times.iter_mut().enumerate() {
            let took = time(if way == 0 { &mut one } else { &mut other });
            if round > 0 {
                times.push(took);
            }
        }
    }
    let mut ratios: Vec<f64> = times[0]
        .iter()
        .zip(&times[1])
        .map(|(one, other)| one.as_secs_f64() / other.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    for times in &mut times {
        times.sort();
    }
    format!(
        "{:.3} (from {:.3} to {:.3} in {ROUNDS} rounds by turns; medians {:?} and {:?})",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
        times[0][ROUNDS / 2],
        times[1][ROUNDS / 2]
    )
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn time(act: &mut dyn FnMut()) -> Duration {
    let begin = Instant::now();
    act();
    begin.elapsed()
}
