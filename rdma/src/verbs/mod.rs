//! Forebay over RDMA verbs: reliable connections (RC) set up through RDMA CM.
mod ffi;
