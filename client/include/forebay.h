/*
 * Forebay's client: files of a node, read into memory that the node writes itself.
 *
 * Made of client/capi/src by its tests: change that instead. docs/c.md explains it with an example.
 *
 * A ring is a connection to a node with two queues in it, in the manner of io_uring: requests that the
 * program fills in and submits, and completions that it looks at and gives back. A read is on its way
 * from forebay_submit to its completion; as many may be as the ring has entries, and they complete in any
 * order, each once. A request keeps its entry until its completion was seen, so that there is always room
 * for that, and none is lost. Nothing goes on by itself: the library works when it is called, and has no
 * thread, but for connecting again.
 *
 * Threads. A ring belongs to one thread at a time, with its files, writers, requests and completions; it
 * may be handed on. Two calls at once are noticed (FOREBAY_BUSY). Different rings know nothing of each other:
 * a program with many threads opens one for each. Memory may be looked at by all threads, when the read
 * into it has completed.
 *
 * Processes. After fork a ring is the parent's alone: in the child each call returns FOREBAY_FORKED, and
 * nothing of the parent's is touched. Memory from forebay_alloc may be common to both. Until the child ends or executes another program, it keeps the
 * parent's connections open. Processes made by clone, past the C library, are not noticed. The library
 * installs no signal handlers, and raises no SIGPIPE.
 *
 * Results. 0 or more is success; else a call returns the negative of an error, a FOREBAY_ number, and
 * forebay_last_error has the words. Pointers are checked for NULL, and reserved fields for 0. Files and
 * writers are numbers: one that is closed, or another ring's, is refused. A ring is a pointer: one that
 * was closed is refused, unless 64 others were closed since; memory that never was a ring is not always
 * noticed. Where a buffer ends nobody but the program knows, and that nobody else uses it meanwhile.
 *
 * Versions. Functions, constants and fields are added, and none is changed, as long as FOREBAY_ABI is the
 * same. Structs that may grow begin with their size.
 */
#ifndef FOREBAY_H
#define FOREBAY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A connection to a node, and the reads that are on their way over it. */
typedef struct forebay_ring forebay_ring;

/** The interface that this header declares. It changes only if programs must be compiled anew. */
#define FOREBAY_ABI 1

/** No such file, generation or handle. */
#define FOREBAY_NOT_FOUND 1

/** The bytes are not on the node, and may not or could not be fetched. */
#define FOREBAY_NOT_RESIDENT 2

/** The source changed, or the generation is gone: open the file again. */
#define FOREBAY_STALE 3

/** A higher epoch has taken over. */
#define FOREBAY_FENCED 4

/** Too much at once, or something is still in use: try again when less is under way. */
#define FOREBAY_BUSY 5

/** No room that may be taken. */
#define FOREBAY_NO_SPACE 6

/** A checksum does not hold. */
#define FOREBAY_CORRUPT 7

/** A device, a file system or a silo failed. */
#define FOREBAY_IO 8

/** The node is away, or did not answer in time. */
#define FOREBAY_DISCONNECTED 9

/** Not allowed. */
#define FOREBAY_DENIED 10

/** The call makes no sense as it stands: a null pointer, a closed handle, a size that is none. */
#define FOREBAY_INVALID 11

/** This library, or the node, cannot do that. */
#define FOREBAY_UNSUPPORTED 12

/** No completion is there, or none came in time. Nothing is lost: ask again. */
#define FOREBAY_TIMED_OUT 100

/**
 * The connection was lost that memory from forebay_alloc was shared over. The node that had it may
 * still write to it: free it, and allocate other memory.
 */
#define FOREBAY_MEMORY_LOST 101

/** A ring was used in a child process after fork: open another one there. */
#define FOREBAY_FORKED 102

/** The library broke a rule of its own in an earlier call: only forebay_close takes this ring. */
#define FOREBAY_BROKEN 103

/**
 * forebay_options.flags: the checksum of every read's and write's bytes goes along, and is checked.
 */
#define FOREBAY_VERIFY 1

/** forebay_options.flags: a connection that is lost is not made again. */
#define FOREBAY_NO_RECONNECT 2

/** forebay_sqe.opcode: nothing was prepared. */
#define FOREBAY_OP_NONE 0

/** forebay_sqe.opcode: a read. */
#define FOREBAY_OP_READ 1

/** forebay_cqe.flags: a device of the node wrote the memory itself. */
#define FOREBAY_PATH_DIRECT 1

/** forebay_cqe.flags: a processor of the node copied the bytes into the memory. */
#define FOREBAY_PATH_COPIED 2

/** forebay_cqe.flags: the bytes came by RDMA. */
#define FOREBAY_PATH_RDMA 4

/** forebay_cqe.flags: the bytes came over TCP. */
#define FOREBAY_PATH_TCP 8

/**
 * forebay_cqe.flags: this library copied them once more, to memory that is not from forebay_alloc.
 */
#define FOREBAY_PATH_CLIENT_COPY 16

/** forebay_cqe.served: no byte was read. */
#define FOREBAY_SERVED_NOTHING 0

/** forebay_cqe.served: the tier had the bytes. */
#define FOREBAY_SERVED_TIER 1

/** forebay_cqe.served: they were just arriving from the silo for somebody else. */
#define FOREBAY_SERVED_ARRIVING 2

/** forebay_cqe.served: the silo had them, and was asked for this read. */
#define FOREBAY_SERVED_RECALL 3

/** forebay_cqe.served: the silo, because the tier's copy was damaged and has been replaced. */
#define FOREBAY_SERVED_REPAIR 4

/** forebay_caps.fabric: there is no ring. */
#define FOREBAY_FABRIC_NONE 0

/** forebay_caps.fabric: memory shared with a node on this machine. */
#define FOREBAY_FABRIC_SHARED_MEMORY 1

/** forebay_caps.fabric: TCP. */
#define FOREBAY_FABRIC_TCP 2

/** forebay_caps.fabric: RDMA. */
#define FOREBAY_FABRIC_RDMA 3

/** forebay_caps.features: the node, or its RDMA device, writes memory from forebay_alloc itself. */
#define FOREBAY_CAP_ZERO_COPY 1u

/** forebay_caps.features: there is a connection at the moment. */
#define FOREBAY_CAP_CONNECTED 2u

/** forebay_caps.features: a connection that is lost is made again. */
#define FOREBAY_CAP_RECONNECTS 4u

/** forebay_caps.features: checksums go along. */
#define FOREBAY_CAP_VERIFIES 8u

/** A file that is open in one ring. 0 is none. */
typedef uint64_t forebay_file;

/** A generation that is being written in one ring. 0 is none. */
typedef uint64_t forebay_writer;

/**
 * How a ring behaves. Zero it, set size, and then what matters: 0 stands for the default.
 *
 * It may grow: a library takes a shorter one of an older header, and a longer one of a newer header
 * if what it does not know is 0.
 */
typedef struct forebay_options {
    /** sizeof(struct forebay_options). */
    uint32_t size;
    /** FOREBAY_VERIFY, FOREBAY_NO_RECONNECT. */
    uint32_t flags;
    /**
     * Reads that are prepared, under way, or completed and not seen, together: at most 65536.
     * Default 256.
     */
    uint32_t entries;
    /** Requests that the node is asked to take at a time. Default 256; the node may grant fewer. */
    uint32_t credits;
    /** Microseconds that a read or a blocking call may take before it is given up. Default 60 s. */
    uint64_t timeout_us;
    /** Microseconds that connecting may take. Default 5 s. */
    uint64_t connect_timeout_us;
    /** Microseconds that forebay_wait_cqe looks for completions before it sleeps. Default 0. */
    uint64_t spin_us;
    /**
     * Bytes of memory to copy through, for reads into other memory than forebay_alloc's. Default 16
     * MiB; at least 2 MiB.
     */
    uint64_t copy_bytes;
    /**
     * 32 hexadecimal digits that prove over TCP and RDMA who this is, or NULL: the environment
     * variable FOREBAY_PROOF.
     */
    const char *proof;
} forebay_options;

/** A request, from forebay_get_sqe. */
typedef struct forebay_sqe {
    /** FOREBAY_OP_READ. */
    uint32_t opcode;
    /** 0. */
    uint32_t flags;
    /** What is read. */
    forebay_file file;
    /** Where the bytes go. */
    void *buffer;
    /** How many. */
    uint64_t length;
    /** From which byte of the file on. */
    uint64_t offset;
    /** The completion carries it. */
    uint64_t user_data;
    /** 0. */
    uint64_t reserved[2];
} forebay_sqe;

/** How a request ended. */
typedef struct forebay_cqe {
    /** The request's. */
    uint64_t user_data;
    /**
     * Bytes read, fewer than asked for only at the end of the file; or the negative of an error,
     * such as -FOREBAY_STALE.
     */
    int64_t result;
    /** The way that the bytes took: FOREBAY_PATH_ bits, of several requests all of them. */
    uint32_t flags;
    /**
     * Where they came from: FOREBAY_SERVED_, of several requests the one furthest from the tier.
     */
    uint32_t served;
    /** Microseconds in the node; 0 where it does not say. */
    uint32_t service_us;
    /** 0. */
    uint32_t reserved;
} forebay_cqe;

/**
 * What this machine and a ring offer. Zero it and set size; it may grow as forebay_options does.
 */
typedef struct forebay_caps {
    /** sizeof(struct forebay_caps); afterwards the bytes that were filled in. */
    uint32_t size;
    /** FOREBAY_ABI of the library. */
    uint32_t abi;
    /** FOREBAY_CAP_ bits. */
    uint64_t features;
    /** FOREBAY_FABRIC_: how the node is reached at the moment. */
    uint32_t fabric;
    /** The ring's entries. */
    uint32_t entries;
    /** Requests that the node takes at a time. */
    uint32_t credits;
    /** Bytes of a block of the node's devices: reads that begin and end on one are the cheapest. */
    uint32_t block_bytes;
    /** Bytes of one request; longer reads are cut by the library. */
    uint64_t max_transfer_bytes;
    /** Connections that were lost and made again. */
    uint64_t reconnections;
    /** Requests that were sent again for that. */
    uint64_t repeated_requests;
    /** RDMA devices of this machine, and ports of them whose link is up. */
    uint32_t rdma_devices;
    /** See rdma_devices. */
    uint32_t rdma_ports_up;
} forebay_caps;

/**
 * Connects to a node and makes a ring. Blocks for at most the time that connecting may take, for
 * each way to the node.
 *
 * endpoint: "unix:/path/to/forebay.sock" (shared memory), "tcp://host:port", "rdma://host:port",
 * several of the latter two behind each other, "rdma://a:7443,b:7443", or "auto": shared memory
 * with a node on this machine, else TCP at 127.0.0.1:7440. options: NULL for the defaults.
 *
 * Errors: FOREBAY_INVALID, FOREBAY_DISCONNECTED if nobody answers, FOREBAY_DENIED,
 * FOREBAY_UNSUPPORTED. *ring is NULL then.
 *
 * The caller sees to it: options has as many bytes as its size says.
 */
int forebay_open(const char *endpoint, const forebay_options *options, forebay_ring **ring);

/**
 * Closes a ring: reads that are under way end without a completion, generations that were not
 * committed are gone, files are closed, memory from forebay_alloc is unmapped, and completions are
 * not to be looked at any more.
 *
 * Errors: FOREBAY_INVALID for what is no ring or closed already; the last 64 rings that were closed
 * are known, and older ones must not be used. FOREBAY_BUSY if another thread is in a call.
 * FOREBAY_FORKED: nothing of the parent's is touched.
 *
 * The caller sees to it: no other thread is about to use the ring.
 */
int forebay_close(forebay_ring *ring);

/**
 * Allocates memory that the node writes and reads itself: page-aligned, with any bytes in it, at
 * the same address until forebay_free. Any number of reads into different parts of it may be under
 * way at a time. May block while the node takes note.
 *
 * Errors: FOREBAY_NO_SPACE, FOREBAY_BUSY if the node maps no more, FOREBAY_DISCONNECTED. *memory is
 * NULL then.
 *
 * The caller sees to it: the memory is the ring's: other rings take it for any other memory, and it
 * is gone when the ring is closed.
 */
int forebay_alloc(forebay_ring *ring, uint64_t length, void **memory);

/**
 * Has the node read and write memory of the program's own where it is, over RDMA and TCP: it is
 * registered once, here and with each later connection, until forebay_free. Any number of reads
 * into different parts of it may be under way at a time, and no byte is copied once more. Fast
 * reads come of registering once what is read into often: over RDMA this locks its pages.
 *
 * Errors: FOREBAY_UNSUPPORTED over shared memory, where a node maps only what was made for it: read
 * into it without registering it, or take forebay_alloc's. FOREBAY_NO_SPACE over the limit on
 * locked memory (ulimit -l); FOREBAY_INVALID if a part of it is registered, or forebay_alloc's;
 * FOREBAY_DISCONNECTED.
 *
 * The caller sees to it: there are so many bytes at memory, and they stay until forebay_free of
 * that address or forebay_close has returned 0.
 */
int forebay_register(forebay_ring *ring, void *memory, uint64_t length);

/**
 * Gives memory back, by the address that forebay_alloc returned or forebay_register got. When this
 * has returned 0, no device reaches it any more by this ring.
 *
 * Errors: FOREBAY_INVALID if none of this ring's begins there; FOREBAY_BUSY if reads into it are
 * under way: it is still there then.
 *
 * The caller sees to it: nobody looks any more into memory that forebay_alloc returned.
 */
int forebay_free(forebay_ring *ring, void *memory);

/**
 * Says what this machine offers, and a ring, which may be NULL.
 *
 * Errors: FOREBAY_INVALID.
 *
 * The caller sees to it: caps has as many bytes as its size says.
 */
int forebay_get_caps(forebay_ring *ring, forebay_caps *caps);

/** The interface that this library has: FOREBAY_ABI of its header. */
uint32_t forebay_abi(void);

/**
 * Opens a file, "silo/key", at a generation; 0 is the newest. What was opened stays as it is,
 * whatever is written later. Waits for the node.
 *
 * Errors: FOREBAY_NOT_FOUND, FOREBAY_STALE if that generation is gone, FOREBAY_DISCONNECTED,
 * FOREBAY_INVALID. *file is 0 then.
 *
 * The caller sees to it: the file belongs to the ring, and is used with that one only.
 */
int forebay_file_open(forebay_ring *ring, const char *name, uint64_t generation, forebay_file *file);

/**
 * Closes a file. Does not wait for the node.
 *
 * Errors: FOREBAY_INVALID if it is not open in this ring; FOREBAY_BUSY if reads of it are under
 * way: it is still open then.
 */
int forebay_file_close(forebay_ring *ring, forebay_file file);

/**
 * Bytes of the file, as it was opened.
 *
 * Errors: FOREBAY_INVALID if it is not open in this ring.
 */
int forebay_file_length(forebay_ring *ring, forebay_file file, uint64_t *length);

/**
 * The generation that was opened.
 *
 * Errors: FOREBAY_INVALID if it is not open in this ring.
 */
int forebay_file_generation(forebay_ring *ring, forebay_file file, uint64_t *generation);

/**
 * An empty request, to be prepared before the next forebay_submit. NULL if the ring is full: as
 * many requests as it has entries are prepared, under way, or completed and not seen; or if the
 * ring is none, as forebay_last_error says.
 *
 * The caller sees to it: the request is the ring's again with the next forebay_submit.
 */
forebay_sqe *forebay_get_sqe(forebay_ring *ring);

/**
 * Makes a read of a request: length bytes of the file from offset on, into buffer. Sets all but
 * user_data.
 *
 * Into memory from forebay_alloc, or that forebay_register got, the node writes itself. Into any
 * other the library copies the bytes when they have come, as FOREBAY_PATH_CLIENT_COPY in the
 * completion says.
 *
 * Errors: FOREBAY_INVALID for a null pointer. All else is told by the completion.
 *
 * The caller sees to it: the buffer has so many bytes until the read has completed, and nobody else
 * uses them.
 */
int forebay_prep_read(forebay_sqe *sqe, forebay_file file, void *buffer, uint64_t length, uint64_t offset);

/**
 * Hands all prepared requests to the node. How many there were: each will have a completion, also
 * those that make no sense.
 *
 * Errors: Negative, if the ring is none, or forked, broken or in use by another thread.
 *
 * The caller sees to it: as with forebay_prep_read.
 */
int forebay_submit(forebay_ring *ring);

/**
 * The oldest completion that was not seen yet, without waiting; the same one until
 * forebay_cqe_seen.
 *
 * If its result is negative, forebay_last_error has the words.
 *
 * Errors: FOREBAY_TIMED_OUT if there is none. *cqe is NULL then.
 *
 * The caller sees to it: the completion is the ring's: it is not to be looked at after
 * forebay_cqe_seen.
 */
int forebay_peek_cqe(forebay_ring *ring, const forebay_cqe **cqe);

/**
 * The same, and waits for one for so many microseconds; if timeout_us is negative, for as long as
 * it takes: no read takes longer than forebay_options.timeout_us by much.
 *
 * Errors: FOREBAY_TIMED_OUT if none came; FOREBAY_INVALID if nothing is under way that could
 * complete. *cqe is NULL then.
 *
 * The caller sees to it: as with forebay_peek_cqe.
 */
int forebay_wait_cqe(forebay_ring *ring, const forebay_cqe **cqe, int64_t timeout_us);

/**
 * Gives a completion back that was looked at. Completions are given back in the order in which they
 * were handed out.
 *
 * Errors: FOREBAY_INVALID if it is not the one that was handed out last, or was given back already.
 */
int forebay_cqe_seen(forebay_ring *ring, const forebay_cqe *cqe);

/**
 * Starts a new generation of a file, "silo/key", or a new file. Nobody sees it before
 * forebay_commit. expected_bytes: a hint, 0 if it is not known. Waits for the node, as all calls on
 * a writer do.
 *
 * Errors: FOREBAY_NOT_FOUND for a silo that there is not, FOREBAY_NO_SPACE, FOREBAY_DISCONNECTED,
 * FOREBAY_INVALID. *writer is 0 then.
 *
 * The caller sees to it: the writer belongs to the ring, and is used with that one only.
 */
int forebay_create(forebay_ring *ring, const char *name, uint64_t expected_bytes, forebay_writer *writer);

/**
 * Writes length bytes to offset of the new generation. From memory from forebay_alloc the node
 * takes them itself; others are copied once.
 *
 * Errors: FOREBAY_INVALID, FOREBAY_NO_SPACE, FOREBAY_MEMORY_LOST, FOREBAY_DISCONNECTED: the
 * generation is lost with its connection.
 *
 * The caller sees to it: the buffer has so many bytes, and nobody writes to them meanwhile.
 */
int forebay_write(forebay_ring *ring, forebay_writer writer, const void *bytes, uint64_t length, uint64_t offset);

/**
 * Makes the new generation durable and visible, whole, at this length in bytes; bytes that were
 * never written are zero. The writer is closed, whatever comes of it. generation: where its number
 * goes, or NULL.
 *
 * Errors: What the node answers. After FOREBAY_DISCONNECTED it is not known whether it was
 * committed: open the file and look at its generation.
 */
int forebay_commit(forebay_ring *ring, forebay_writer writer, uint64_t length, uint64_t *generation);

/**
 * Drops a generation that was not committed, and closes the writer.
 *
 * Errors: FOREBAY_INVALID if it is not open in this ring.
 */
int forebay_abort(forebay_ring *ring, forebay_writer writer);

/**
 * What went wrong in this thread's last call that failed, and what to do about it. Never NULL. Good
 * until the thread's next call that fails, or that hands out a completion that failed.
 */
const char *forebay_last_error(void);

/** What an error means, in general; of either sign. Never NULL, and good for ever. */
const char *forebay_strerror(int error);

/** The library's version, such as "0.1.0". Good for ever. */
const char *forebay_version(void);

#ifdef __cplusplus
}
#endif

#endif
