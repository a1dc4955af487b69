//! Two contestants in turns.

use extent::Result;

use crate::verdict::{RivalOnly, Verdict};

/// Us and a rival. Scores are in the same unit; more is better unless it says otherwise.
pub trait Duel {
    /// One run of ours.
    ///
    /// # Errors
    /// What went wrong.
    fn ours(&mut self) -> Result<f64>;

    /// One run of the rival's.
    ///
    /// # Errors
    /// What went wrong.
    fn rival(&mut self) -> Result<f64>;

    /// The rival, and how it is run.
    fn rival_name(&self) -> String;

    /// Whether scores are costs: the ratio is then the rival's to ours.
    fn less_is_better(&self) -> bool {
        false
    }
}

/// Fewer pairs than this tell nothing, and pass nothing.
pub const LEAST_PAIRS: usize = 5;

/// What a case is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The case's name.
    pub case: &'static str,
    /// What scores count.
    pub unit: &'static str,
    /// The ratio of scores to reach.
    pub target: f64,
}

/// Runs so many pairs, each contestant first in every other pair, so that drift of the machine
/// hits both alike.
///
/// # Errors
/// Of the first run that fails.
pub fn run(duel: &mut dyn Duel, terms: Terms, pairs: usize) -> Result<Verdict> {
    let mut scores = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        scores.push(if pair % 2 == 0 {
            let ours = duel.ours()?;
            (ours, duel.rival()?)
        } else {
            let rival = duel.rival()?;
            (duel.ours()?, rival)
        });
    }
    if !duel.less_is_better() {
        return Ok(judge(&scores, duel.rival_name(), terms));
    }
    let turned: Vec<_> = scores.iter().map(|(ours, rival)| (*rival, *ours)).collect();
    let verdict = judge(&turned, duel.rival_name(), terms);
    Ok(Verdict { ours: verdict.rival, rival: verdict.ours, ..verdict })
}

/// Something of ours that has to stay below a limit.
pub trait Measure {
    /// One run.
    ///
    /// # Errors
    /// What went wrong.
    fn measure(&mut self) -> Result<f64>;
}

/// Runs a measurement so many times. The ratio is the limit's to ours, so that 1 just holds it.
///
/// # Errors
/// Of the first run that fails.
pub fn run_limited(
    measure: &mut dyn Measure,
    terms: Terms,
    limit: f64,
    least: f64,
    runs: usize,
) -> Result<Verdict> {
    let mut values = Vec::with_capacity(runs);
    for _ in 0..runs {
        values.push(measure.measure()?);
    }
    let ratios = || values.iter().map(|value| limit / value.max(least));
    let ratio = median(ratios());
    Ok(Verdict {
        case: terms.case,
        ours: median(values.iter().copied()),
        rival: limit,
        rival_name: "limit".to_owned(),
        unit: terms.unit,
        ratio,
        ratio_min: ratios().fold(f64::INFINITY, f64::min),
        ratio_max: ratios().fold(0.0, f64::max),
        runs,
        target: terms.target,
        pass: ratio >= terms.target,
    })
}

/// Runs only the rival.
///
/// # Errors
/// Of the first run that fails.
pub fn run_rival(duel: &mut dyn Duel, terms: Terms, runs: usize) -> Result<RivalOnly> {
    let rival_runs = (0..runs).map(|_| duel.rival()).collect::<Result<Vec<_>>>()?;
    Ok(RivalOnly {
        case: terms.case,
        rival: median(rival_runs.iter().copied()),
        rival_name: duel.rival_name(),
        unit: terms.unit,
        rival_runs,
    })
}

/// Judges pairs of (our score, the rival's).
#[must_use]
pub fn judge(scores: &[(f64, f64)], rival_name: String, terms: Terms) -> Verdict {
    let ratios = || scores.iter().map(|(ours, rival)| ours / rival);
    let ratio = median(ratios());
    Verdict {
        case: terms.case,
        ours: median(scores.iter().map(|(ours, _)| *ours)),
        rival: median(scores.iter().map(|(_, rival)| *rival)),
        rival_name,
        unit: terms.unit,
        ratio,
        ratio_min: ratios().fold(f64::INFINITY, f64::min),
        ratio_max: ratios().fold(0.0, f64::max),
        runs: scores.len(),
        target: terms.target,
        pass: ratio >= terms.target && scores.len() >= LEAST_PAIRS,
    }
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { case: "x", unit: "MB/s", target: 0.9 };

    struct Script {
        order: String,
        scores: Vec<f64>,
        costs: bool,
    }

    impl Duel for Script {
        fn ours(&mut self) -> Result<f64> {
            self.order.push('o');
            Ok(self.scores.remove(0))
        }

        fn rival(&mut self) -> Result<f64> {
            self.order.push('r');
            Ok(100.0)
        }

        fn rival_name(&self) -> String {
            "a rival".to_owned()
        }

        fn less_is_better(&self) -> bool {
            self.costs
        }
    }

    #[test]
    fn pairs_alternate_and_the_median_ratio_decides() {
        let scores = vec![50.0, 95.0, 91.0, 300.0, 80.0];
        let mut duel = Script { order: String::new(), scores, costs: false };
        let verdict = run(&mut duel, TERMS, 5).expect("scripted");
        assert_eq!(duel.order, "orroorroor");
        assert_eq!((verdict.ratio, verdict.ratio_min, verdict.ratio_max), (0.91, 0.5, 3.0));
        assert!(verdict.pass && verdict.runs == 5);
        let scores = vec![50.0, 80.0, 125.0, 100.0, 200.0];
        let mut duel = Script { order: String::new(), scores, costs: true };
        let verdict = run(&mut duel, TERMS, 5).expect("scripted");
        assert_eq!((verdict.ratio, verdict.ratio_min, verdict.ratio_max), (1.0, 0.5, 2.0));
        assert_eq!((verdict.ours, verdict.rival), (100.0, 100.0));
        assert!(!judge(&[(89.0, 100.0); 5], String::new(), TERMS).pass, "below the target");
        assert!(!judge(&[(99.0, 100.0); 4], String::new(), TERMS).pass, "too few pairs");
        assert!(!judge(&[(0.0, 0.0); 5], String::new(), TERMS).pass, "nothing by nothing");
    }

    #[test]
    fn limits_hold_or_do_not() {
        struct Fixed(f64);
        impl Measure for Fixed {
            fn measure(&mut self) -> Result<f64> {
                Ok(self.0)
            }
        }
        let terms = Terms { target: 1.0, ..TERMS };
        let at = |value| run_limited(&mut Fixed(value), terms, 0.01, 0.001, 3).expect("fixed");
        assert!(at(0.01).pass && at(0.0).pass && !at(0.011).pass);
        assert_eq!(at(0.0).ratio, 10.0, "no better than what can be told apart");
    }

    #[test]
    fn medians_of_even_counts_lie_between() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
