//! Shared memory: the fabric for clients on the node's own host.
//!
//! A session is one connected UNIX stream socket, one piece of memory that the node made and both
//! sides map (*the link*: two rings and two wake words), one eventfd (*the doorbell*, rung by the
//! client), and the client's own regions, which it makes and the node maps. All numbers are
//! little-endian; reserved bytes are zero, and the node ends a session whose reserved bytes are not.
//!
//! # Handshake
//! The node checks `SO_PEERCRED` against [`PeerPolicy`], then expects one HELLO, written at once:
//!
//! | HELLO, 32 bytes | |
//! |---|---|
//! | 0..8 | magic `FBSHMEM1` |
//! | 8..10, 10..12 | lowest and highest version spoken, u16 each; this is version 1 |
//! | 12..16, 16..20 | request slots and reply slots wished for, u32 each |
//! | 20..32 | reserved |
//!
//! It answers with a *note* (below): WELCOME, with two descriptors as `SCM_RIGHTS`, first the link's
//! memfd, then the doorbell; or WELCOME with a status and a sentence, and hangs up. Slots granted are
//! powers of two from 32 to 1024, whatever was wished for.
//!
//! # The link
//! A memfd of ordinary pages, allocated in full, sealed with `F_SEAL_SHRINK | F_SEAL_GROW |
//! F_SEAL_SEAL`. `Q` = request slots, `P` = reply slots.
//!
//! | bytes | written by | |
//! |---|---|---|
//! | 0..128 | | reserved |
//! | 128..132 | client | request tail, u32: requests ever put in |
//! | 256..260 | node | request head, u32: requests ever taken out |
//! | 384..388 | node | reply tail, u32 |
//! | 512..516 | client | reply head, u32 |
//! | 640..644 | both | node's wake word, u32 |
//! | 768..772 | both | client's wake word, u32 |
//! | 4096 .. 4096 + 128 Q | client | request slots |
//! | 4096 + 128 Q .. 4096 + 128 Q + 256 P | node | reply slots |
//!
//! Each word has 128 bytes to itself: two cache lines, because processors prefetch them in pairs. The
//! indices run freely and wrap at 2³²; entry `i` is in slot `i mod Q` (or `P`). A request slot holds a
//! capsule of 64 or 128 bytes from its first byte; the capsule's own flags say which, so there is no
//! length. A reply slot holds the 32 bytes of a reply, then its body with checksum. The writer fills
//! slots, then stores its tail with release order; the reader loads the tail with acquire order, copies
//! the slots out once, then stores its head with release order. A tail or head that is further from the
//! other than the ring is long, or runs backwards, ends the session.
//!
//! The node takes a request out only while the reply ring has room for its reply next to those still
//! owed, so replies never queue anywhere else: a client that does not take its replies is not served,
//! and costs nothing. A client with at most `P` requests outstanding never meets this.
//!
//! # Sleeping and waking
//! A wake word is 0 while its owner polls. The owner stores 1 before it sleeps, issues a full fence, and
//! looks at its ring once more. The other side publishes, issues a full fence, loads the word and, if it
//! is not 0, exchanges it for 0; whoever thereby removed a value wakes the owner. The node stores 2
//! instead of 1 when what it waits for is room in the reply ring: then a client that moves the reply
//! head wakes it, too. The `wake` module says why no wake-up is lost.
//!
//! The client wakes the node by adding 1 to the doorbell. The node watches it edge-triggered and never
//! reads or writes it: an eventfd's flags are shared with the client, who could make it block. For the
//! same reason the node wakes the client by a `FUTEX_WAKE` of its wake word rather than by a second eventfd.
//!
//! # The control socket
//! Client to node, *orders* of 32 bytes:
//!
//! | bytes | |
//! |---|---|
//! | 0 | 1 REGISTER (with exactly one descriptor, in the same `sendmsg`), 2 UNREGISTER |
//! | 1..4 | reserved |
//! | 4..8 | the region's key, u32, chosen by the client, unlike its others |
//! | 8..16 | REGISTER: the region's length in bytes, u64 |
//! | 16..32 | reserved |
//!
//! Node to client, *notes* of 256 bytes:
//!
//! | bytes | |
//! |---|---|
//! | 0 | 0x80 WELCOME, 0x81 REGISTERED, 0x82 UNREGISTERED, 0x83 CLOSED |
//! | 1 | status, as in replies: 0 is success |
//! | 2..4 | bytes of the sentence, u16, at most 224 |
//! | 4..8 | REGISTERED, UNREGISTERED: the key |
//! | 8..10 | WELCOME: the version both speak from now on, u16 |
//! | 10..12 | reserved |
//! | 12..16, 16..20 | WELCOME: request slots and reply slots granted, u32 each |
//! | 20..24 | WELCOME: regions the session may have, u32 |
//! | 24..32 | WELCOME: bytes they may have together, u64 |
//! | 32..256 | the sentence, UTF-8, for a status that is not 0 |
//!
//! A region is a memfd sealed with at least `F_SEAL_SHRINK | F_SEAL_GROW`. Of huge pages it may be if the
//! client is the node's own user or root: a hole would kill the node at its next touch, so the node adds
//! `F_SEAL_FUTURE_WRITE`, which keeps anyone from punching one, and then allocates what is missing; the
//! client maps it before it registers it, since it cannot afterwards. A segment's `key` names a region, its `address` is the offset in it. The hang-up of the socket ends the session on both
//! sides; a node that ends one first publishes its replies and sends CLOSED with the reason.

mod channel;
mod closer;
mod control;
mod copy;
mod handshake;
#[cfg(test)]
mod hostile;
mod layout;
mod message;
mod regions;
mod ring;
mod session;
mod sys;
mod transport;
mod wake;

pub use channel::ShmChannel;
pub use handshake::{PeerPolicy, ShmConnection, ShmOptions, handshake};
pub use transport::ShmTransport;
