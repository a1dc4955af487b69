//! A test runner for tests that need what a machine may not have: those it skips by name, with the reason, as
//! the usual one cannot once it is running. Its last line is the usual one's.
#![expect(clippy::print_stdout, reason = "this is what a test runner does")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test, by its name.
pub(crate) type Test<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// Runs tests, or says for each why not. With `FOREBAY_REQUIRE_GPU` in the environment, skipping is failing.
pub(crate) fn run(tests: &[Test<'_>], skip: Option<&str>) -> ExitCode {
    run_required_by("FOREBAY_REQUIRE_GPU", tests, skip)
}

/// As [`run`], with another variable.
pub(crate) fn run_required_by(variable: &str, tests: &[Test<'_>], skip: Option<&str>) -> ExitCode {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if std::env::args().any(|word| word == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let required = std::env::var_os(variable).is_some();
    let (mut passed, mut failed, mut skipped, mut left_out) = (0, 0, 0, 0);
    println!("\nrunning {} tests", tests.len());
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            left_out += 1;
            continue;
        }
        match skip {
            Some(reason) if required => {
                println!("test {name} ... FAILED: required by {variable}: {reason}");
                failed += 1;
            }
            Some(reason) => {
                println!("test {name} ... ignored, skipped: {reason}");
                skipped += 1;
            }
            None if catch_unwind(AssertUnwindSafe(test)).is_ok() => {
                println!("test {name} ... ok");
                passed += 1;
            }
            None => {
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; {left_out} \
         filtered out\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
