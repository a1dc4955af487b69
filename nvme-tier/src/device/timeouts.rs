use std::ops::RangeInclusive;
use std::time::Duration;

use extent::{Kind, Result};

use super::Driver;

/// What a command may take at least and at most before something is done about it: no sound device
/// needs less, and nobody waits for more.
const COMMAND_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
const RESET_MOST: Duration = Duration::from_secs(1200);
const READY_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
const RESETS_RANGE: RangeInclusive<u32> = 1..=60;

/// How long a controller that is driven from here is waited for (driver `vfio`). The kernel has its
/// own for what it drives.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Timeouts {
    /// After this a command is aborted; 30 s unless told.
    pub command: Option<Duration>,
    /// After this a command has its controller reset; twice as long unless told.
    pub reset: Option<Duration>,
    /// How often a controller may be reset within a minute before it is given up; 5 unless told.
    pub resets_per_minute: Option<u32>,
    /// How long a controller may take to become ready, and to stop; unless told, what it asks for
    /// (CAP.TO).
    pub ready: Option<Duration>,
}

impl Timeouts {
    /// After how long a command is aborted.
    #[must_use]
    pub fn command(&self) -> Duration {
        // As the kernel's own driver has it.
        self.command.unwrap_or(Duration::from_secs(30))
    }

    /// After how long a command has its controller reset.
    #[must_use]
    pub fn reset(&self) -> Duration {
        self.reset.unwrap_or(2 * self.command())
    }

    /// How often a controller may be reset within a minute.
    #[must_use]
    pub fn resets_per_minute(&self) -> u32 {
        self.resets_per_minute.unwrap_or(5)
    }

    /// Whether they make sense.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the name of the one that does not, as the configuration has it.
    pub fn check(&self) -> Result<()> {
        within("command_timeout", self.command(), &COMMAND_RANGE)?;
        let after = self.command() + Duration::from_secs(1);
        within("reset_timeout", self.reset(), &(after..=RESET_MOST))?;
        if let Some(ready) = self.ready {
            within("ready_timeout", ready, &READY_RANGE)?;
        }
        let (resets, range) = (self.resets_per_minute(), RESETS_RANGE);
        if range.contains(&resets) {
            return Ok(());
        }
        Err(Kind::Invalid.error(format!(
            "resets_per_minute is from {} to {}, not {resets}",
            range.start(),
            range.end()
        )))
    }
}

fn within(name: &str, value: Duration, range: &RangeInclusive<Duration>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Kind::Invalid.error(format!(
        "{name} is from {} s to {} s here, not {} s",
        range.start().as_secs_f32(),
        range.end().as_secs_f32(),
        value.as_secs_f32()
    )))
}

/// How a device is to be reached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reach {
    /// Who moves its blocks.
    pub driver: Driver,
    /// How long it is waited for.
    pub timeouts: Timeouts,
}

impl From<Driver> for Reach {
    fn from(driver: Driver) -> Self {
        Self { driver, timeouts: Timeouts::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_kernel_and_follow_each_other() {
        let seconds = Duration::from_secs;
        let default = Timeouts::default();
        default.check().expect("sensible");
        assert_eq!((default.command(), default.reset()), (seconds(30), seconds(60)));
        let slow = Timeouts { command: Some(seconds(100)), ..default };
        slow.check().expect("sensible");
        assert_eq!(slow.reset(), seconds(200));
    }

    #[test]
    fn senseless_ones_are_refused_by_name() {
        let some = |seconds| Some(Duration::from_secs(seconds));
        let default = Timeouts::default();
        for (timeouts, name) in [
            (Timeouts { command: some(0), ..default }, "command_timeout"),
            (Timeouts { command: some(601), ..default }, "command_timeout"),
            (Timeouts { reset: some(30), ..default }, "reset_timeout"),
            (Timeouts { reset: some(1201), ..default }, "reset_timeout"),
            (Timeouts { ready: some(0), ..default }, "ready_timeout"),
            (Timeouts { resets_per_minute: Some(0), ..default }, "resets_per_minute"),
            (Timeouts { resets_per_minute: Some(61), ..default }, "resets_per_minute"),
        ] {
            let error = timeouts.check().expect_err(name);
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
