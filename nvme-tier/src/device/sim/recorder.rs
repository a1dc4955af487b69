//! A run, kept so that the power can be cut at every moment of it.

use super::platter::{Platter, fingerprint_all};
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

    /// What the disks are like.
    #[must_use]
    pub fn options(&self) -> SimOptions {
        self.options
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

    /// The fingerprints of all that a cut after `moment` events can leave, without making any of it.
    ///
    /// # Panics
    /// If there are not so many events.
    #[must_use]
    pub fn fingerprints_at(&mut self, moment: usize) -> Fingerprints {
        Fingerprints(self.platter_at(moment).fingerprints())
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

/// What [`Recorder::crash_at`] would leave at one moment, as numbers that equal images share.
#[derive(Clone, Debug)]
pub struct Fingerprints(Option<(u128, Vec<Vec<u128>>)>);

impl Fingerprints {
    /// Whether no two unflushed writes want the same block.
    #[must_use]
    pub fn are_apart(&self) -> bool {
        self.0.is_some()
    }

    /// The fingerprint under a choice, of which there is one for each of
    /// [`Recorder::unflushed_at`], in that order. `None` if two unflushed writes want the same
    /// block: then ask [`SimDisk::fingerprint`] of the disk itself.
    #[must_use]
    pub fn of(&self, choice: &[Survival]) -> Option<u128> {
        let (durable, changes) = self.0.as_ref()?;
        let of = |(survival, changes): (&Survival, &Vec<u128>)| match survival {
            Survival::Lost => 0,
            Survival::Whole => changes.iter().fold(0, |sum, change| sum ^ change),
            Survival::Torn(blocks) => {
                let at = |block: &u32| changes.get(*block as usize).copied().unwrap_or(0);
                blocks.iter().map(at).fold(0, |sum, change| sum ^ change)
            }
        };
        Some(choice.iter().zip(changes).map(of).fold(*durable, |sum, change| sum ^ change))
    }
}

impl SimDisk {
    /// A number that disks with the same durable contents share, and others for all practical
    /// purposes do not.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        fingerprint_all(&self.durable_image())
    }
}
