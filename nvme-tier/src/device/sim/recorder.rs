//! A run, kept so that the power can be cut at every moment of it.

use super::platter::Platter;
use super::{Event, SimDisk, SimOptions, Survival, WriteRecord};

/// All that happened to a [`SimDisk`] since [`SimDisk::record`]: the disks as they were then, and
/// the events since. One run gives a crash test all of its cut points; [`SimDisk::now`], asked
/// when something is acknowledged, tells from which cut on it must be found.
#[derive(Clone, Debug)]
pub struct Recorder {
    options: SimOptions,
    base: Platter,
    events: Vec<Event>,
    /// The moment last asked for: asking for them in order costs each event once.
    cursor: Option<(usize, Platter)>,
}

impl Recorder {
    pub(super) fn new(options: SimOptions, base: Platter) -> Self {
        Self { options, base, events: Vec::new(), cursor: None }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// How many events there are: cuts are possible from 0, before the first, to this, after the
    /// last.
    #[must_use]
    pub fn moments(&self) -> usize {
        self.events.len()
    }

    /// What happened, in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The writes that a cut after `moment` events might or might not take back.
    ///
    /// # Panics
    /// If there are not so many events.
    #[must_use]
    pub fn unflushed_at(&mut self, moment: usize) -> Vec<WriteRecord> {
        self.platter_at(moment).unflushed()
    }

    /// The power is cut after `moment` events: new, healthy devices with what was durable then and
    /// what `choice` lets survive of the rest.
    ///
    /// # Panics
    /// If there are not so many events.
    #[must_use]
    pub fn crash_at(
        &mut self,
        moment: usize,
        choice: &mut dyn FnMut(&WriteRecord) -> Survival,
    ) -> SimDisk {
        let options = self.options;
        SimDisk::from_images(options, self.platter_at(moment).crash(choice))
    }

    fn platter_at(&mut self, moment: usize) -> &Platter {
        let (from, mut platter) = match self.cursor.take() {
            Some((from, platter)) if from <= moment => (from, platter),
            _ => (0, self.base.clone()),
        };
        self.events[from..moment].iter().for_each(|event| platter.apply(event));
        &self.cursor.insert((moment, platter)).1
    }
}
