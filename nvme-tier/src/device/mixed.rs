//! Devices that are driven in different ways, as one.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Kind, Result};

use super::polled::PolledQueue;
use super::wait::until_readable;
use super::{Command, Completion, Device, DeviceIndex, Geometry, HandedOver, Token, UringDevice};

/// The longest sleep while a polled device has work: it wakes nobody.
const POLL_PAUSE: Duration = Duration::from_micros(50);

/// A queue over all devices of a tier of which some are polled.
///
/// A polled device raises no interrupts. So a sleep is a real one only while nothing is in flight on
/// any of them; else it lasts no longer than a device takes for a few commands.
pub(super) struct MixedDevice {
    /// For those devices that the kernel drives; `None` if there are none.
    uring: Option<UringDevice>,
    polled: Vec<PolledQueue>,
    /// For each device of the tier which of `polled` it is, if it is.
    routes: Vec<Option<usize>>,
    geometries: Vec<Geometry>,
    /// Refused before they reached any device.
    refused: Vec<Completion>,
}

impl MixedDevice {
    /// Puts queues together; `queues` holds one for each device of the tier, `None` where `uring`
    /// has it.
    pub(super) fn new(
        uring: Option<UringDevice>,
        queues: Vec<Option<PolledQueue>>,
        geometries: Vec<Geometry>,
    ) -> Self {
        let mut polled = Vec::new();
        let mut routes = Vec::new();
        for queue in queues {
            routes.push(queue.map(|queue| {
                polled.push(queue);
                polled.len() - 1
            }));
        }
        Self { uring, polled, routes, geometries, refused: Vec::new() }
    }

    fn polled_in_flight(&self) -> usize {
        self.polled.iter().map(PolledQueue::in_flight).sum()
    }
}

impl Device for MixedDevice {
    fn count(&self) -> usize {
        self.geometries.len()
    }

    fn geometry(&self, device: DeviceIndex) -> Geometry {
        self.geometries[usize::from(device.0)]
    }

    fn submit(&mut self, token: Token, command: Command) -> Result<(), Command> {
        match (self.routes.get(usize::from(command.device().0)), &mut self.uring) {
            (Some(Some(number)), _) => self.polled[*number].submit(token, command),
            (Some(None), Some(uring)) => uring.submit(token, command),
            _ => {
                let device = command.device().0;
                let error =
                    Kind::Invalid.error(format!("there is no device {device} in this tier"));
                self.refused.push(Completion { token, command, result: Err(error) });
                Ok(())
            }
        }
    }

    fn kick(&mut self) -> Result<()> {
        self.polled.iter_mut().for_each(PolledQueue::kick);
        self.uring.as_mut().map_or(Ok(()), Device::kick)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.refused);
        for queue in &mut self.polled {
            queue.poll(completions);
        }
        if let Some(uring) = &mut self.uring {
            uring.poll(completions);
        }
    }

    fn in_flight(&self) -> usize {
        let uring = self.uring.as_ref().map_or(0, Device::in_flight);
        uring + self.polled_in_flight() + self.refused.len()
    }

    fn sleep(&mut self, others: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<bool> {
        self.kick()?;
        let has_polled = self.polled_in_flight() > 0 || !self.refused.is_empty();
        let limit =
            if has_polled { Some(limit.map_or(POLL_PAUSE, |l| l.min(POLL_PAUSE))) } else { limit };
        match &mut self.uring {
            Some(uring) => uring.sleep(others, limit),
            None if has_polled => {
                // A sleep as short as this is a look at the descriptors, and a moment for others.
                let rung = until_readable(others, Some(Duration::ZERO));
                thread::yield_now();
                Ok(rung)
            }
            None if others.is_empty() => Ok(false),
            None => Ok(until_readable(others, limit)),
        }
    }

    /// Of polled devices alone nothing is slept for: the caller polls anyway.
    fn gather(&mut self, count: usize) -> Result<()> {
        match &mut self.uring {
            Some(uring) if self.polled.iter().all(|queue| queue.in_flight() == 0) => {
                uring.gather(count)
            }
            _ => {
                self.kick()?;
                std::hint::spin_loop();
                Ok(())
            }
        }
    }

    fn handed_over(&self) -> HandedOver {
        let sum = |a: HandedOver, b: HandedOver| HandedOver {
            commands: a.commands + b.commands,
            doorbells: a.doorbells + b.doorbells,
        };
        self.polled.iter().map(PolledQueue::handed_over).fold(HandedOver::default(), sum)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        for queue in &mut self.polled {
            queue.register(region)?;
        }
        self.uring.as_mut().map_or(Ok(()), |uring| uring.register(region))
    }

    fn unregister(&mut self, region: RegionId) {
        for queue in &mut self.polled {
            queue.unregister(region);
        }
        if let Some(uring) = &mut self.uring {
            uring.unregister(region);
        }
    }
}
