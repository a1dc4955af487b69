/*
 * Reads a file of a node with 32 reads on the way, compares every byte with a copy of the file, and says
 * which way the bytes took.
 *
 *   cc -std=c11 -Iclient/include client/examples/read_file.c -Ltarget/release -lforebay -o read_file
 *   LD_LIBRARY_PATH=target/release ./read_file auto silo/key /path/of/a/copy
 */
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "forebay.h"

#define DEPTH 32
#define BLOCK_BYTES ((uint64_t)64 * 1024)

/* How many reads took which way. */
struct mix {
    uint64_t direct, copied, rdma, tcp;
};

struct reader {
    forebay_ring *ring;
    forebay_file file;
    uint64_t length;
    /* DEPTH blocks of memory that the node writes itself, and one to compare with. */
    unsigned char *blocks;
    unsigned char expected[BLOCK_BYTES];
    int copy;
    /* Where the read of each block began. */
    uint64_t offsets[DEPTH];
    struct mix mix;
};

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, forebay_last_error());
    exit(1);
}

/* Prepares a read into a block; 0 if the file is read to its end. */
static int start(struct reader *reader, uint64_t block, uint64_t *next) {
    forebay_sqe *sqe;
    if (*next >= reader->length) {
        return 0;
    }
    sqe = forebay_get_sqe(reader->ring);
    if (!sqe) {
        fail("no request");
    }
    forebay_prep_read(sqe, reader->file, reader->blocks + block * BLOCK_BYTES, BLOCK_BYTES, *next);
    sqe->user_data = block;
    reader->offsets[block] = *next;
    *next += BLOCK_BYTES;
    return 1;
}

/* Looks at a completed read. */
static void check(struct reader *reader, const forebay_cqe *cqe) {
    uint64_t block = cqe->user_data;
    uint64_t offset = reader->offsets[block];
    uint64_t left = reader->length - offset;
    uint64_t wanted = left < BLOCK_BYTES ? left : BLOCK_BYTES;
    if (cqe->result < 0) {
        fail("reading");
    }
    if ((uint64_t)cqe->result != wanted ||
        pread(reader->copy, reader->expected, wanted, (off_t)offset) != (ssize_t)wanted ||
        memcmp(reader->blocks + block * BLOCK_BYTES, reader->expected, wanted) != 0) {
        fprintf(stderr, "other bytes than expected at %" PRIu64 "\n", offset);
        exit(1);
    }
    reader->mix.direct += (cqe->flags & FOREBAY_PATH_DIRECT) != 0;
    reader->mix.copied += (cqe->flags & FOREBAY_PATH_COPIED) != 0;
    reader->mix.rdma += (cqe->flags & FOREBAY_PATH_RDMA) != 0;
    reader->mix.tcp += (cqe->flags & FOREBAY_PATH_TCP) != 0;
}

static void read_all(struct reader *reader) {
    uint64_t next = 0, block;
    int under_way = 0;
    for (block = 0; block < DEPTH; block++) {
        under_way += start(reader, block, &next);
    }
    while (under_way > 0) {
        const forebay_cqe *cqe;
        if (forebay_submit(reader->ring) < 0 || forebay_wait_cqe(reader->ring, &cqe, -1) < 0) {
            fail("waiting");
        }
        /* One wait, and then whatever else has come. */
        do {
            block = cqe->user_data;
            check(reader, cqe);
            forebay_cqe_seen(reader->ring, cqe);
            under_way += start(reader, block, &next) - 1;
        } while (forebay_peek_cqe(reader->ring, &cqe) == 0);
    }
}

int main(int argc, char **argv) {
    static struct reader reader;
    void *memory;
    if (argc != 4) {
        fprintf(stderr, "usage: %s ENDPOINT SILO/KEY COPY\n", argv[0]);
        return 2;
    }
    reader.copy = open(argv[3], O_RDONLY);
    if (reader.copy < 0) {
        perror(argv[3]);
        return 1;
    }
    if (forebay_open(argv[1], NULL, &reader.ring) < 0) {
        fail(argv[1]);
    }
    if (forebay_file_open(reader.ring, argv[2], 0, &reader.file) < 0 ||
        forebay_file_length(reader.ring, reader.file, &reader.length) < 0) {
        fail(argv[2]);
    }
    if (forebay_alloc(reader.ring, DEPTH * BLOCK_BYTES, &memory) < 0) {
        fail("allocating");
    }
    reader.blocks = (unsigned char *)memory;
    read_all(&reader);
    printf("%" PRIu64 " bytes, all as in the copy; reads by way of: device %" PRIu64 ", processor %" PRIu64
           ", RDMA %" PRIu64 ", TCP %" PRIu64 "\n",
           reader.length, reader.mix.direct, reader.mix.copied, reader.mix.rdma, reader.mix.tcp);
    forebay_close(reader.ring);
    close(reader.copy);
    return 0;
}
