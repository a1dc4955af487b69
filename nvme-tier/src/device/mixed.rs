//! Devices that are driven in different ways, as one.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Kind, Result};

use super::memory::MemoryQueue;
use super::polled::PolledQueue;
use super::wait::until_readable;
use super::{Command, Completion, Device, DeviceIndex, Geometry, HandedOver, Token, UringDevice};

/// The longest sleep while a polled device has work: it wakes nobody.
const POLL_PAUSE: Duration = Duration::from_micros(50);

/// One device's queue that no ring has.
#[expect(clippy::large_enum_variant, reason = "on its way to its list")]
pub(super) enum Driven {
    /// Of a controller that is driven from here.
    Polled(PolledQueue),
    /// Of a file in memory.
    Memory(MemoryQueue),
}

/// Which queue has a device's commands.
#[derive(Clone, Copy)]
enum Route {
    Uring,
    Polled(usize),
    Memory(usize),
}

/// A queue over all devices of a tier of which some are polled, or in memory.
///
/// A polled device raises no interrupts. So a sleep is a real one only while nothing is in flight on
/// any of them; else it lasts no longer than a device takes for a few commands. What memory is asked for is done
/// by the next poll.
pub(super) struct MixedDevice {
    /// For those devices that the kernel drives; `None` if there are none.
    uring: Option<UringDevice>,
    polled: Vec<PolledQueue>,
    memory: Vec<MemoryQueue>,
    /// For each device of the tier.
    routes: Vec<Route>,
    geometries: Vec<Geometry>,
    /// Refused before they reached any device.
    refused: Vec<Completion>,
}

impl MixedDevice {
    /// Puts queues together; `queues` holds one for each device of the tier, `None` where `uring`
    /// has it.
    pub(super) fn new(
        uring: Option<UringDevice>,
        queues: Vec<Option<Driven>>,
        geometries: Vec<Geometry>,
    ) -> Self {
        let (mut polled, mut memory) = (Vec::new(), Vec::new());
        let mut routes = Vec::new();
        for queue in queues {
            routes.push(match queue {
                None => Route::Uring,
                Some(Driven::Polled(queue)) => {
                    polled.push(queue);
                    Route::Polled(polled.len() - 1)
                }
                Some(Driven::Memory(queue)) => {
                    memory.push(queue);
                    Route::Memory(memory.len() - 1)
                }
            });
        }
        Self { uring, polled, memory, routes, geometries, refused: Vec::new() }
    }

    /// Commands that only wait to be polled.
    fn ripe(&self) -> usize {
        self.refused.len() + self.memory.iter().map(MemoryQueue::in_flight).sum::<usize>()
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
            (Some(Route::Polled(number)), _) => self.polled[*number].submit(token, command),
            (Some(Route::Memory(number)), _) => self.memory[*number].submit(token, command),
            (Some(Route::Uring), Some(uring)) => uring.submit(token, command),
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
        for queue in &mut self.memory {
            queue.poll(completions);
        }
        for queue in &mut self.polled {
            queue.poll(completions);
        }
        if let Some(uring) = &mut self.uring {
            uring.poll(completions);
        }
    }

    fn in_flight(&self) -> usize {
        let uring = self.uring.as_ref().map_or(0, Device::in_flight);
        uring + self.polled_in_flight() + self.ripe()
    }

    fn sleep(&mut self, others: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<bool> {
        self.kick()?;
        if self.ripe() > 0 {
            return Ok(until_readable(others, Some(Duration::ZERO)));
        }
        let has_polled = self.polled_in_flight() > 0;
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
        let is_idle = self.polled_in_flight() + self.ripe() == 0;
        match &mut self.uring {
            Some(uring) if is_idle => uring.gather(count),
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
