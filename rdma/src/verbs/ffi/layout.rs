//! Compares the declared layouts with those of rdma-core's headers, by compiling a C program that
//! prints them. Needs the headers (`libibverbs-dev`, `librdmacm-dev`) and a C compiler.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use super::*;

/// A field in C, and where it is declared to be.
struct Field(&'static str, &'static str, usize);

/// Lists fields, each with its name in C if that is another.
macro_rules! fields {
    ($($name:ident { $($field:ident $(= $c:literal)?),* })*) => {
        vec![$($(Field(stringify!($name), fields!(@ $field $($c)?), offset_of!($name, $field)),)*)*]
    };
    (@ $field:ident) => { stringify!($field) };
    (@ $field:ident $c:literal) => { $c };
}

fn fields() -> Vec<Field> {
    fields! {
        ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors }
        ibv_context_ops { poll_cq, req_notify_cq, post_srq_recv, post_send, post_recv }
        ibv_pd { context, handle }
        ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        ibv_comp_channel { context, fd, refcnt }
        ibv_cq { context, channel, cq_context, handle, cqe }
        ibv_srq { context }
        ibv_qp { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num }
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_qp_attr { qp_state, qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, max_rd_atomic,
            min_rnr_timer, timeout, retry_cnt, rnr_retry, rate_limit }
        ibv_ah_attr { grh, dlid, sl, port_num }
        ibv_srq_init_attr { srq_context, attr }
        ibv_srq_attr { max_wr, max_sge, srq_limit }
        ibv_sge { addr, length, lkey }
        ibv_async_event { element, event_type }
        ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data,
            remote_addr = "wr.rdma.remote_addr", rkey = "wr.rdma.rkey" }
        ibv_recv_wr { wr_id, next, sg_list, num_sge }
        ibv_wc { wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags,
            pkey_index, slid, sl, dlid_path_bits }
        ibv_device_attr { fw_ver, node_guid, max_qp, max_qp_wr, max_sge, max_cqe, max_mr,
            max_qp_rd_atom, max_qp_init_rd_atom, max_srq_wr, max_pkeys, phys_port_cnt }
        ibv_port_attr { state, max_mtu, active_mtu, gid_tbl_len, max_msg_sz, pkey_tbl_len, lid,
            active_width, active_speed, phys_state, link_layer, flags, port_cap_flags2 }
        rdma_event_channel { fd }
        rdma_addr { src = "src_addr", dst = "dst_addr", ib = "addr" }
        rdma_route { addr, path_rec, num_paths }
        rdma_cm_id { verbs, channel, context, qp, route, ps, port_num }
        rdma_conn_param { private_data, private_data_len, responder_resources, initiator_depth,
            flow_control, retry_count, rnr_retry_count, srq, qp_num }
        rdma_cm_event { id, listen_id, event, status, conn = "param.conn" }
    }
}

/// Types that are made here rather than by the libraries, or copied: their sizes count, too.
fn sizes() -> Vec<(&'static str, usize)> {
    macro_rules! sizes {
        ($($name:ident),*) => { vec![$((stringify!($name), size_of::<$name>())),*] };
    }
    sizes!(
        ibv_context_ops,
        ibv_qp_cap,
        ibv_qp_init_attr,
        ibv_qp_attr,
        ibv_ah_attr,
        ibv_srq_init_attr,
        ibv_async_event,
        ibv_sge,
        ibv_send_wr,
        ibv_recv_wr,
        ibv_wc,
        ibv_device_attr,
        ibv_port_attr,
        rdma_addr,
        rdma_route,
        rdma_conn_param
    )
}

/// Constants and what they are called in C.
const CONSTANTS: [(&str, i64); 35] = [
    ("IBV_QPT_RC", IBV_QPT_RC as i64),
    ("IBV_QP_STATE", IBV_QP_STATE as i64),
    ("IBV_QP_ACCESS_FLAGS", IBV_QP_ACCESS_FLAGS as i64),
    ("IBV_QP_MIN_RNR_TIMER", IBV_QP_MIN_RNR_TIMER as i64),
    ("IBV_QPS_RTS", IBV_QPS_RTS as i64),
    ("IBV_WR_RDMA_WRITE", IBV_WR_RDMA_WRITE as i64),
    ("IBV_WR_RDMA_WRITE_WITH_IMM", IBV_WR_RDMA_WRITE_WITH_IMM as i64),
    ("IBV_WR_SEND", IBV_WR_SEND as i64),
    ("IBV_SEND_SOLICITED", IBV_SEND_SOLICITED as i64),
    ("IBV_WC_WITH_IMM", IBV_WC_WITH_IMM as i64),
    ("IBV_WR_RDMA_READ", IBV_WR_RDMA_READ as i64),
    ("IBV_WR_LOCAL_INV", IBV_WR_LOCAL_INV as i64),
    ("IBV_WR_SEND_WITH_INV", IBV_WR_SEND_WITH_INV as i64),
    ("IBV_SEND_SIGNALED", IBV_SEND_SIGNALED as i64),
    ("IBV_SEND_INLINE", IBV_SEND_INLINE as i64),
    ("IBV_ACCESS_LOCAL_WRITE", IBV_ACCESS_LOCAL_WRITE as i64),
    ("IBV_ACCESS_REMOTE_WRITE", IBV_ACCESS_REMOTE_WRITE as i64),
    ("IBV_ACCESS_REMOTE_READ", IBV_ACCESS_REMOTE_READ as i64),
    ("RDMA_PS_TCP", RDMA_PS_TCP as i64),
    ("RDMA_OPTION_ID", RDMA_OPTION_ID as i64),
    ("RDMA_OPTION_ID_TOS", RDMA_OPTION_ID_TOS as i64),
    ("RDMA_OPTION_ID_ACK_TIMEOUT", RDMA_OPTION_ID_ACK_TIMEOUT as i64),
    ("RDMA_CM_EVENT_ESTABLISHED", 9),
    ("IBV_WC_WR_FLUSH_ERR", 5),
    ("IBV_WC_TM_RNDV_INCOMPLETE", 23),
    ("IBV_SRQ_LIMIT", IBV_SRQ_LIMIT as i64),
    ("IBV_PORT_ACTIVE", IBV_PORT_ACTIVE as i64),
    ("IBV_EVENT_CQ_ERR", 0),
    ("IBV_EVENT_COMM_EST", IBV_EVENT_COMM_EST as i64),
    ("IBV_EVENT_DEVICE_FATAL", 8),
    ("IBV_EVENT_PORT_ERR", 10),
    ("IBV_EVENT_QP_LAST_WQE_REACHED", 16),
    ("IBV_EVENT_GID_CHANGE", 18),
    ("IBV_EVENT_WQ_FATAL", 19),
    ("IBV_WC_RECV", 128),
];

#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn layouts_are_those_of_the_headers() {
    if !Path::new("/usr/include/rdma/rdma_cma.h").exists() {
        eprintln!("skipped: rdma-core's headers are not installed (librdmacm-dev)");
        return;
    }
    let mut source = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <rdma/rdma_cma.h>\nint main(void) {\n",
    );
    let mut expected = String::new();
    for Field(name, field, offset) in fields() {
        writeln!(source, "printf(\"{name}.{field} %zu\\n\", offsetof(struct {name}, {field}));")
            .expect("a string");
        writeln!(expected, "{name}.{field} {offset}").expect("a string");
    }
    for (name, size) in sizes() {
        writeln!(source, "printf(\"{name} %zu\\n\", sizeof(struct {name}));").expect("a string");
        writeln!(expected, "{name} {size}").expect("a string");
    }
    for (name, value) in CONSTANTS {
        writeln!(source, "printf(\"{name} %lld\\n\", (long long){name});").expect("a string");
        writeln!(expected, "{name} {value}").expect("a string");
    }
    source.push_str("return 0; }\n");
    let folder = tempfile::tempdir().expect("a folder");
    let (file, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    std::fs::write(&file, source).expect("written");
    let compiled = Command::new("cc").arg(&file).arg("-o").arg(&program).output().expect("cc runs");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&program).output().expect("it runs").stdout;
    assert_eq!(String::from_utf8_lossy(&printed), expected);
}
