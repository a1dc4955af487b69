//! The tools that we are compared with, each driven by its own module.

pub mod copy;
pub mod fio;
pub mod iperf;
pub mod nbd;
pub mod nginx;
pub mod nvmet;
pub mod perftest;
