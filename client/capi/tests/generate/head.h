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

