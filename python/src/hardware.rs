//! What this machine offers to a client.

use std::path::PathBuf;

use client::Endpoint;
use pyo3::prelude::*;
use rdma::RdmaDevice;

use crate::errors::Raise;

/// RDMA devices and their ports: name, whether the link is up, its addresses.
#[pyfunction]
pub(crate) fn rdma_devices(py: Python<'_>) -> PyResult<Vec<(String, bool, Vec<String>)>> {
    let devices = py.detach(RdmaDevice::all).raise(py)?;
    let ports = devices.iter().flat_map(|device| {
        device.ports.iter().map(|port| {
            let addresses = port.gids.iter().map(|gid| gid.address.to_string());
            (device.name.clone(), port.active, addresses.collect())
        })
    });
    Ok(ports.collect())
}

/// Where an endpoint looks for shared memory, in this order.
#[pyfunction]
pub(crate) fn shm_sockets(py: Python<'_>, endpoint: &str) -> PyResult<Vec<PathBuf>> {
    let endpoint: Endpoint = endpoint.parse().raise(py)?;
    Ok(endpoint.sockets())
}
