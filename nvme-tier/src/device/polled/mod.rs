//! A polled-mode NVMe driver in user space.
//!
//! A [`Controller`] owns what all queues share: the registers, the admin queue, the reset. Each
//! thread has a [`PolledQueue`] of its own, a pair of submission and completion rings that nobody
//! else touches: no lock, no system call and no allocation between a command and its completion.
//!
//! Why this is sound: a device reads and writes the memory of a command from the moment that its
//! doorbell is rung until it posts the completion, or until it is *quiet*: disabled, reset, cut off
//! from its bus, or gone. All that time the command, which owns its memory, lies in its place in
//! the queue's table. A completion is believed only if it names a command that is in flight; one
//! that does not shows a controller that has lost its mind, which is then reset.

mod admin;
mod controller;
mod core;
mod doorbell;
mod features;
mod goal;
mod host;
mod life;
mod memory;
mod operation;
mod places;
mod queue;
mod rings;
mod tender;
#[cfg(test)]
mod tests;

pub(super) use controller::{Controller, ControllerOptions, Regions};
pub(super) use host::{Host, Registers};
pub(super) use queue::PolledQueue;
