//! What both sides of the boundary see. The header is made of this file and of [`crate::calls`]:
//! types and constants get the prefix `forebay_` or `FOREBAY_` there.

use std::ffi::{c_char, c_void};

/// The interface that this header declares. It changes only if programs must be compiled anew.
pub const ABI: u32 = 1;

/// No such file, generation or handle.
pub const NOT_FOUND: i32 = 1;
/// The bytes are not on the node, and may not or could not be fetched.
pub const NOT_RESIDENT: i32 = 2;
/// The source changed, or the generation is gone: open the file again.
pub const STALE: i32 = 3;
/// A higher epoch has taken over.
pub const FENCED: i32 = 4;
/// Too much at once, or something is still in use: try again when less is under way.
pub const BUSY: i32 = 5;
/// No room that may be taken.
pub const NO_SPACE: i32 = 6;
/// A checksum does not hold.
pub const CORRUPT: i32 = 7;
/// A device, a file system or a silo failed.
pub const IO: i32 = 8;
/// The node is away, or did not answer in time.
pub const DISCONNECTED: i32 = 9;
/// Not allowed.
pub const DENIED: i32 = 10;
/// The call makes no sense as it stands: a null pointer, a closed handle, a size that is none.
pub const INVALID: i32 = 11;
/// This library, or the node, cannot do that.
pub const UNSUPPORTED: i32 = 12;
/// No completion is there, or none came in time. Nothing is lost: ask again.
pub const TIMED_OUT: i32 = 100;
/// The connection was lost that memory from forebay_alloc was shared over. The node that had it may still write to it: free
/// it, and allocate other memory.
pub const MEMORY_LOST: i32 = 101;
/// A ring was used in a child process after fork: open another one there.
pub const FORKED: i32 = 102;
/// The library broke a rule of its own in an earlier call: only forebay_close takes this ring.
pub const BROKEN: i32 = 103;

/// forebay_options.flags: the checksum of every read's and write's bytes goes along, and is checked.
pub const VERIFY: u32 = 1;
/// forebay_options.flags: a connection that is lost is not made again.
pub const NO_RECONNECT: u32 = 2;

/// forebay_sqe.opcode: nothing was prepared.
pub const OP_NONE: u32 = 0;
/// forebay_sqe.opcode: a read.
pub const OP_READ: u32 = 1;

/// forebay_cqe.flags: a device of the node wrote the memory itself.
pub const PATH_DIRECT: u32 = 1;
/// forebay_cqe.flags: a processor of the node copied the bytes into the memory.
pub const PATH_COPIED: u32 = 2;
/// forebay_cqe.flags: the bytes came by RDMA.
pub const PATH_RDMA: u32 = 4;
/// forebay_cqe.flags: the bytes came over TCP.
pub const PATH_TCP: u32 = 8;
/// forebay_cqe.flags: this library copied them once more, to memory that is not from forebay_alloc.
pub const PATH_CLIENT_COPY: u32 = 16;

/// forebay_cqe.served: no byte was read.
pub const SERVED_NOTHING: u32 = 0;
/// forebay_cqe.served: the tier had the bytes.
pub const SERVED_TIER: u32 = 1;
/// forebay_cqe.served: they were just arriving from the silo for somebody else.
pub const SERVED_ARRIVING: u32 = 2;
/// forebay_cqe.served: the silo had them, and was asked for this read.
pub const SERVED_RECALL: u32 = 3;
/// forebay_cqe.served: the silo, because the tier's copy was damaged and has been replaced.
pub const SERVED_REPAIR: u32 = 4;

/// forebay_caps.fabric: there is no ring.
pub const FABRIC_NONE: u32 = 0;
/// forebay_caps.fabric: memory shared with a node on this machine.
pub const FABRIC_SHARED_MEMORY: u32 = 1;
/// forebay_caps.fabric: TCP.
pub const FABRIC_TCP: u32 = 2;
/// forebay_caps.fabric: RDMA.
pub const FABRIC_RDMA: u32 = 3;

/// forebay_caps.features: the node, or its RDMA device, writes memory from forebay_alloc itself.
pub const CAP_ZERO_COPY: u64 = 1;
/// forebay_caps.features: there is a connection at the moment.
pub const CAP_CONNECTED: u64 = 2;
/// forebay_caps.features: a connection that is lost is made again.
pub const CAP_RECONNECTS: u64 = 4;
/// forebay_caps.features: checksums go along.
pub const CAP_VERIFIES: u64 = 8;

/// A file that is open in one ring. 0 is none.
pub type File = u64;
/// A generation that is being written in one ring. 0 is none.
pub type Writer = u64;

/// How a ring behaves. Zero it, set `size`, and then what matters: 0 stands for the default.
///
/// It may grow: a library takes a shorter one of an older header, and a longer one of a newer header if what it does not know is 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Options {
    /// sizeof(struct forebay_options).
    pub size: u32,
    /// FOREBAY_VERIFY, FOREBAY_NO_RECONNECT.
    pub flags: u32,
    /// Reads that are prepared, under way, or completed and not seen, together: at most 65536. Default 256.
    pub entries: u32,
    /// Requests that the node is asked to take at a time. Default 256; the node may grant fewer.
    pub credits: u32,
    /// Microseconds that a read or a blocking call may take before it is given up. Default 60 s.
    pub timeout_us: u64,
    /// Microseconds that connecting may take. Default 5 s.
    pub connect_timeout_us: u64,
    /// Microseconds that forebay_wait_cqe looks for completions before it sleeps. Default 0.
    pub spin_us: u64,
    /// Bytes of memory to copy through, for reads into other memory than forebay_alloc's. Default 16 MiB; at least 2 MiB.
    pub copy_bytes: u64,
    /// 32 hexadecimal digits that prove over TCP and RDMA who this is, or NULL: the environment variable FOREBAY_PROOF.
    pub proof: *const c_char,
}

/// A request, from forebay_get_sqe.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sqe {
    /// FOREBAY_OP_READ.
    pub opcode: u32,
    /// 0.
    pub flags: u32,
    /// What is read.
    pub file: File,
    /// Where the bytes go.
    pub buffer: *mut c_void,
    /// How many.
    pub length: u64,
    /// From which byte of the file on.
    pub offset: u64,
    /// The completion carries it.
    pub user_data: u64,
    /// 0.
    pub reserved: [u64; 2],
}

/// How a request ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cqe {
    /// The request's.
    pub user_data: u64,
    /// Bytes read, fewer than asked for only at the end of the file; or the negative of an error, such as -FOREBAY_STALE.
    pub result: i64,
    /// The way that the bytes took: FOREBAY_PATH_ bits, of several requests all of them.
    pub flags: u32,
    /// Where they came from: FOREBAY_SERVED_, of several requests the one furthest from the tier.
    pub served: u32,
    /// Microseconds in the node; 0 where it does not say.
    pub service_us: u32,
    /// 0.
    pub reserved: u32,
}

/// What this machine and a ring offer. Zero it and set `size`; it may grow as forebay_options does.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Caps {
    /// sizeof(struct forebay_caps); afterwards the bytes that were filled in.
    pub size: u32,
    /// FOREBAY_ABI of the library.
    pub abi: u32,
    /// FOREBAY_CAP_ bits.
    pub features: u64,
    /// FOREBAY_FABRIC_: how the node is reached at the moment.
    pub fabric: u32,
    /// The ring's entries.
    pub entries: u32,
    /// Requests that the node takes at a time.
    pub credits: u32,
    /// Bytes of a block of the node's devices: reads that begin and end on one are the cheapest.
    pub block_bytes: u32,
    /// Bytes of one request; longer reads are cut by the library.
    pub max_transfer_bytes: u64,
    /// Connections that were lost and made again.
    pub reconnections: u64,
    /// Requests that were sent again for that.
    pub repeated_requests: u64,
    /// RDMA devices of this machine, and ports of them whose link is up.
    pub rdma_devices: u32,
    /// See rdma_devices.
    pub rdma_ports_up: u32,
}

// Programs were compiled with these.
const _: () = assert!(size_of::<Options>() == 56 && size_of::<Sqe>() == 64);
const _: () = assert!(size_of::<Cqe>() == 32 && size_of::<Caps>() == 64);

impl Options {
    /// All defaults.
    pub(crate) const DEFAULT: Self = Self {
        size: 0,
        flags: 0,
        entries: 0,
        credits: 0,
        timeout_us: 0,
        connect_timeout_us: 0,
        spin_us: 0,
        copy_bytes: 0,
        proof: std::ptr::null(),
    };
}

impl Sqe {
    /// Nothing yet.
    pub(crate) const NONE: Self = Self {
        opcode: OP_NONE,
        flags: 0,
        file: 0,
        buffer: std::ptr::null_mut(),
        length: 0,
        offset: 0,
        user_data: 0,
        reserved: [0; 2],
    };
}

impl Cqe {
    /// An empty place.
    pub(crate) const NONE: Self = Self {
        user_data: 0,
        result: 0,
        flags: 0,
        served: SERVED_NOTHING,
        service_us: 0,
        reserved: 0,
    };
}
