//! Types of `infiniband/verbs.h` and `rdma/rdma_cma.h`, as far as they are used. Types that end in
//! something not declared here are only ever handled by address.

use std::ffi::c_void;

use libc::{c_char, c_int, c_uint, sockaddr, sockaddr_storage};

/// A function of a table that is never called from here.
type Unused = Option<unsafe extern "C" fn()>;

/// The beginning of `struct ibv_context`; `ops` are what its driver provides.
#[repr(C)]
pub(in crate::verbs) struct ibv_context {
    pub(in crate::verbs) device: *mut ibv_device,
    pub(in crate::verbs) ops: ibv_context_ops,
    pub(in crate::verbs) cmd_fd: c_int,
    pub(in crate::verbs) async_fd: c_int,
    pub(in crate::verbs) num_comp_vectors: c_int,
}

/// An opaque device.
#[repr(C)]
pub(in crate::verbs) struct ibv_device {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(in crate::verbs) struct ibv_context_ops {
    pub(in crate::verbs) before_poll_cq: [Unused; 11],
    pub(in crate::verbs) poll_cq: unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int,
    pub(in crate::verbs) req_notify_cq: unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int,
    pub(in crate::verbs) before_post_srq_recv: [Unused; 7],
    pub(in crate::verbs) post_srq_recv:
        unsafe extern "C" fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    pub(in crate::verbs) before_post_send: [Unused; 4],
    pub(in crate::verbs) post_send:
        unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
    pub(in crate::verbs) post_recv:
        unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    pub(in crate::verbs) rest: [Unused; 5],
}

#[repr(C)]
pub(in crate::verbs) struct ibv_pd {
    pub(in crate::verbs) context: *mut ibv_context,
    pub(in crate::verbs) handle: u32,
}

#[repr(C)]
pub(in crate::verbs) struct ibv_mr {
    pub(in crate::verbs) context: *mut ibv_context,
    pub(in crate::verbs) pd: *mut ibv_pd,
    pub(in crate::verbs) addr: *mut c_void,
    pub(in crate::verbs) length: usize,
    pub(in crate::verbs) handle: u32,
    pub(in crate::verbs) lkey: u32,
    pub(in crate::verbs) rkey: u32,
}

#[repr(C)]
pub(in crate::verbs) struct ibv_comp_channel {
    pub(in crate::verbs) context: *mut ibv_context,
    pub(in crate::verbs) fd: c_int,
    pub(in crate::verbs) refcnt: c_int,
}

/// The beginning of `struct ibv_cq`.
#[repr(C)]
pub(in crate::verbs) struct ibv_cq {
    pub(in crate::verbs) context: *mut ibv_context,
    pub(in crate::verbs) channel: *mut ibv_comp_channel,
    pub(in crate::verbs) cq_context: *mut c_void,
    pub(in crate::verbs) handle: u32,
    pub(in crate::verbs) cqe: c_int,
}

/// The beginning of `struct ibv_srq`.
#[repr(C)]
pub(in crate::verbs) struct ibv_srq {
    pub(in crate::verbs) context: *mut ibv_context,
}

/// The beginning of `struct ibv_qp`.
#[repr(C)]
pub(in crate::verbs) struct ibv_qp {
    pub(in crate::verbs) context: *mut ibv_context,
    pub(in crate::verbs) qp_context: *mut c_void,
    pub(in crate::verbs) pd: *mut ibv_pd,
    pub(in crate::verbs) send_cq: *mut ibv_cq,
    pub(in crate::verbs) recv_cq: *mut ibv_cq,
    pub(in crate::verbs) srq: *mut ibv_srq,
    pub(in crate::verbs) handle: u32,
    pub(in crate::verbs) qp_num: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_qp_cap {
    pub(in crate::verbs) max_send_wr: u32,
    pub(in crate::verbs) max_recv_wr: u32,
    pub(in crate::verbs) max_send_sge: u32,
    pub(in crate::verbs) max_recv_sge: u32,
    pub(in crate::verbs) max_inline_data: u32,
}

#[repr(C)]
pub(in crate::verbs) struct ibv_qp_init_attr {
    pub(in crate::verbs) qp_context: *mut c_void,
    pub(in crate::verbs) send_cq: *mut ibv_cq,
    pub(in crate::verbs) recv_cq: *mut ibv_cq,
    pub(in crate::verbs) srq: *mut ibv_srq,
    pub(in crate::verbs) cap: ibv_qp_cap,
    pub(in crate::verbs) qp_type: c_uint,
    pub(in crate::verbs) sq_sig_all: c_int,
}

pub(in crate::verbs) const IBV_QPT_RC: c_uint = 2;

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_global_route {
    pub(in crate::verbs) dgid: [u64; 2],
    pub(in crate::verbs) flow_label: u32,
    pub(in crate::verbs) sgid_index: u8,
    pub(in crate::verbs) hop_limit: u8,
    pub(in crate::verbs) traffic_class: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_ah_attr {
    pub(in crate::verbs) grh: ibv_global_route,
    pub(in crate::verbs) dlid: u16,
    pub(in crate::verbs) sl: u8,
    pub(in crate::verbs) src_path_bits: u8,
    pub(in crate::verbs) static_rate: u8,
    pub(in crate::verbs) is_global: u8,
    pub(in crate::verbs) port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_qp_attr {
    pub(in crate::verbs) qp_state: c_uint,
    pub(in crate::verbs) cur_qp_state: c_uint,
    pub(in crate::verbs) path_mtu: c_uint,
    pub(in crate::verbs) path_mig_state: c_uint,
    pub(in crate::verbs) qkey: u32,
    pub(in crate::verbs) rq_psn: u32,
    pub(in crate::verbs) sq_psn: u32,
    pub(in crate::verbs) dest_qp_num: u32,
    pub(in crate::verbs) qp_access_flags: c_uint,
    pub(in crate::verbs) cap: ibv_qp_cap,
    pub(in crate::verbs) ah_attr: ibv_ah_attr,
    pub(in crate::verbs) alt_ah_attr: ibv_ah_attr,
    pub(in crate::verbs) pkey_index: u16,
    pub(in crate::verbs) alt_pkey_index: u16,
    pub(in crate::verbs) en_sqd_async_notify: u8,
    pub(in crate::verbs) sq_draining: u8,
    pub(in crate::verbs) max_rd_atomic: u8,
    pub(in crate::verbs) max_dest_rd_atomic: u8,
    pub(in crate::verbs) min_rnr_timer: u8,
    pub(in crate::verbs) port_num: u8,
    pub(in crate::verbs) timeout: u8,
    pub(in crate::verbs) retry_cnt: u8,
    pub(in crate::verbs) rnr_retry: u8,
    pub(in crate::verbs) alt_port_num: u8,
    pub(in crate::verbs) alt_timeout: u8,
    pub(in crate::verbs) rate_limit: u32,
}

pub(in crate::verbs) const IBV_QP_STATE: c_int = 1 << 0;
pub(in crate::verbs) const IBV_QP_ACCESS_FLAGS: c_int = 1 << 3;
pub(in crate::verbs) const IBV_QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub(in crate::verbs) const IBV_QPS_RTS: c_uint = 3;
pub(in crate::verbs) const IBV_EVENT_COMM_EST: c_uint = 4;

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_srq_attr {
    pub(in crate::verbs) max_wr: u32,
    pub(in crate::verbs) max_sge: u32,
    pub(in crate::verbs) srq_limit: u32,
}

#[repr(C)]
pub(in crate::verbs) struct ibv_srq_init_attr {
    pub(in crate::verbs) srq_context: *mut c_void,
    pub(in crate::verbs) attr: ibv_srq_attr,
}

/// What of a shared receive queue is to change.
pub(in crate::verbs) const IBV_SRQ_LIMIT: c_int = 1 << 1;

/// `element` is a union: an address, or in its lower half a port's number.
#[repr(C)]
pub(in crate::verbs) struct ibv_async_event {
    pub(in crate::verbs) element: *mut c_void,
    pub(in crate::verbs) event_type: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_sge {
    pub(in crate::verbs) addr: u64,
    pub(in crate::verbs) length: u32,
    pub(in crate::verbs) lkey: u32,
}

/// `wr` as it is for RDMA; `rest` are the parts of the unions that are longer.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_send_wr {
    pub(in crate::verbs) wr_id: u64,
    pub(in crate::verbs) next: *mut ibv_send_wr,
    pub(in crate::verbs) sg_list: *mut ibv_sge,
    pub(in crate::verbs) num_sge: c_int,
    pub(in crate::verbs) opcode: c_uint,
    pub(in crate::verbs) send_flags: c_uint,
    pub(in crate::verbs) imm_data: u32,
    pub(in crate::verbs) remote_addr: u64,
    pub(in crate::verbs) rkey: u32,
    pub(in crate::verbs) rest: [u64; 9],
}

pub(in crate::verbs) const IBV_WR_RDMA_WRITE: c_uint = 0;
pub(in crate::verbs) const IBV_WR_RDMA_WRITE_WITH_IMM: c_uint = 1;
pub(in crate::verbs) const IBV_WR_SEND: c_uint = 2;
pub(in crate::verbs) const IBV_WR_RDMA_READ: c_uint = 4;
#[cfg(test)]
pub(in crate::verbs) const IBV_WR_LOCAL_INV: c_uint = 7;
#[cfg(test)]
pub(in crate::verbs) const IBV_WR_SEND_WITH_INV: c_uint = 9;
pub(in crate::verbs) const IBV_SEND_SIGNALED: c_uint = 1 << 1;
pub(in crate::verbs) const IBV_SEND_SOLICITED: c_uint = 1 << 2;
pub(in crate::verbs) const IBV_SEND_INLINE: c_uint = 1 << 3;

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_recv_wr {
    pub(in crate::verbs) wr_id: u64,
    pub(in crate::verbs) next: *mut ibv_recv_wr,
    pub(in crate::verbs) sg_list: *mut ibv_sge,
    pub(in crate::verbs) num_sge: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ibv_wc {
    pub(in crate::verbs) wr_id: u64,
    pub(in crate::verbs) status: c_uint,
    pub(in crate::verbs) opcode: c_uint,
    pub(in crate::verbs) vendor_err: u32,
    pub(in crate::verbs) byte_len: u32,
    pub(in crate::verbs) imm_data: u32,
    pub(in crate::verbs) qp_num: u32,
    pub(in crate::verbs) src_qp: u32,
    pub(in crate::verbs) wc_flags: c_uint,
    pub(in crate::verbs) pkey_index: u16,
    pub(in crate::verbs) slid: u16,
    pub(in crate::verbs) sl: u8,
    pub(in crate::verbs) dlid_path_bits: u8,
}

pub(in crate::verbs) const IBV_WC_WITH_IMM: c_uint = 1 << 1;

pub(in crate::verbs) const IBV_ACCESS_LOCAL_WRITE: c_int = 1;
pub(in crate::verbs) const IBV_ACCESS_REMOTE_WRITE: c_int = 1 << 1;
pub(in crate::verbs) const IBV_ACCESS_REMOTE_READ: c_int = 1 << 2;

#[repr(C)]
pub(in crate::verbs) struct ibv_device_attr {
    pub(in crate::verbs) fw_ver: [c_char; 64],
    pub(in crate::verbs) node_guid: u64,
    pub(in crate::verbs) sys_image_guid: u64,
    pub(in crate::verbs) max_mr_size: u64,
    pub(in crate::verbs) page_size_cap: u64,
    pub(in crate::verbs) vendor_id: u32,
    pub(in crate::verbs) vendor_part_id: u32,
    pub(in crate::verbs) hw_ver: u32,
    pub(in crate::verbs) max_qp: c_int,
    pub(in crate::verbs) max_qp_wr: c_int,
    pub(in crate::verbs) device_cap_flags: c_uint,
    pub(in crate::verbs) max_sge: c_int,
    pub(in crate::verbs) max_sge_rd: c_int,
    pub(in crate::verbs) max_cq: c_int,
    pub(in crate::verbs) max_cqe: c_int,
    pub(in crate::verbs) max_mr: c_int,
    pub(in crate::verbs) max_pd: c_int,
    pub(in crate::verbs) max_qp_rd_atom: c_int,
    pub(in crate::verbs) max_ee_rd_atom: c_int,
    pub(in crate::verbs) max_res_rd_atom: c_int,
    pub(in crate::verbs) max_qp_init_rd_atom: c_int,
    pub(in crate::verbs) max_ee_init_rd_atom: c_int,
    pub(in crate::verbs) atomic_cap: c_uint,
    pub(in crate::verbs) max_ee: c_int,
    pub(in crate::verbs) max_rdd: c_int,
    pub(in crate::verbs) max_mw: c_int,
    pub(in crate::verbs) max_raw_ipv6_qp: c_int,
    pub(in crate::verbs) max_raw_ethy_qp: c_int,
    pub(in crate::verbs) max_mcast_grp: c_int,
    pub(in crate::verbs) max_mcast_qp_attach: c_int,
    pub(in crate::verbs) max_total_mcast_qp_attach: c_int,
    pub(in crate::verbs) max_ah: c_int,
    pub(in crate::verbs) max_fmr: c_int,
    pub(in crate::verbs) max_map_per_fmr: c_int,
    pub(in crate::verbs) max_srq: c_int,
    pub(in crate::verbs) max_srq_wr: c_int,
    pub(in crate::verbs) max_srq_sge: c_int,
    pub(in crate::verbs) max_pkeys: u16,
    pub(in crate::verbs) local_ca_ack_delay: u8,
    pub(in crate::verbs) phys_port_cnt: u8,
}

pub(in crate::verbs) const IBV_PORT_ACTIVE: c_uint = 4;

#[repr(C)]
pub(in crate::verbs) struct ibv_port_attr {
    pub(in crate::verbs) state: c_uint,
    pub(in crate::verbs) max_mtu: c_uint,
    pub(in crate::verbs) active_mtu: c_uint,
    pub(in crate::verbs) gid_tbl_len: c_int,
    pub(in crate::verbs) port_cap_flags: u32,
    pub(in crate::verbs) max_msg_sz: u32,
    pub(in crate::verbs) bad_pkey_cntr: u32,
    pub(in crate::verbs) qkey_viol_cntr: u32,
    pub(in crate::verbs) pkey_tbl_len: u16,
    pub(in crate::verbs) lid: u16,
    pub(in crate::verbs) sm_lid: u16,
    pub(in crate::verbs) lmc: u8,
    pub(in crate::verbs) max_vl_num: u8,
    pub(in crate::verbs) sm_sl: u8,
    pub(in crate::verbs) subnet_timeout: u8,
    pub(in crate::verbs) init_type_reply: u8,
    pub(in crate::verbs) active_width: u8,
    pub(in crate::verbs) active_speed: u8,
    pub(in crate::verbs) phys_state: u8,
    pub(in crate::verbs) link_layer: u8,
    pub(in crate::verbs) flags: u8,
    pub(in crate::verbs) port_cap_flags2: u16,
}

#[repr(C)]
pub(in crate::verbs) struct rdma_event_channel {
    pub(in crate::verbs) fd: c_int,
}

/// `struct rdma_addr`, whose last part is only ever used for InfiniBand without IP.
#[repr(C)]
pub(in crate::verbs) struct rdma_addr {
    pub(in crate::verbs) src: sockaddr_storage,
    pub(in crate::verbs) dst: sockaddr_storage,
    pub(in crate::verbs) ib: [u64; 5],
}

#[repr(C)]
pub(in crate::verbs) struct rdma_route {
    pub(in crate::verbs) addr: rdma_addr,
    pub(in crate::verbs) path_rec: *mut c_void,
    pub(in crate::verbs) num_paths: c_int,
}

#[repr(C)]
pub(in crate::verbs) struct rdma_cm_id {
    pub(in crate::verbs) verbs: *mut ibv_context,
    pub(in crate::verbs) channel: *mut rdma_event_channel,
    pub(in crate::verbs) context: *mut c_void,
    pub(in crate::verbs) qp: *mut ibv_qp,
    pub(in crate::verbs) route: rdma_route,
    pub(in crate::verbs) ps: c_uint,
    pub(in crate::verbs) port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct rdma_conn_param {
    pub(in crate::verbs) private_data: *const c_void,
    pub(in crate::verbs) private_data_len: u8,
    pub(in crate::verbs) responder_resources: u8,
    pub(in crate::verbs) initiator_depth: u8,
    pub(in crate::verbs) flow_control: u8,
    pub(in crate::verbs) retry_count: u8,
    pub(in crate::verbs) rnr_retry_count: u8,
    pub(in crate::verbs) srq: u8,
    pub(in crate::verbs) qp_num: u32,
}

/// The event of a connection; of `param`, what connections use.
#[repr(C)]
pub(in crate::verbs) struct rdma_cm_event {
    pub(in crate::verbs) id: *mut rdma_cm_id,
    pub(in crate::verbs) listen_id: *mut rdma_cm_id,
    pub(in crate::verbs) event: c_uint,
    pub(in crate::verbs) status: c_int,
    pub(in crate::verbs) conn: rdma_conn_param,
}

pub(in crate::verbs) const RDMA_PS_TCP: c_uint = 0x0106;
pub(in crate::verbs) const RDMA_OPTION_ID: c_int = 0;
pub(in crate::verbs) const RDMA_OPTION_ID_TOS: c_int = 0;
pub(in crate::verbs) const RDMA_OPTION_ID_ACK_TIMEOUT: c_int = 3;

/// A socket address as C takes it.
pub(in crate::verbs) type c_sockaddr = sockaddr;
