/*
 * What the interface promises, and above all what it does when it is misused. Started by node/tests/c.rs with
 * a node's endpoints, a file of it, and a copy of that; it asks for what is to be done with the node by a line on
 * stdout, and goes on after a line on stdin.
 */
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "forebay.h"

static const char *endpoint, *tcp_endpoint, *name;
static unsigned char *copy;
static uint64_t copy_length;

static void load_copy(const char *path) {
    int file = open(path, O_RDONLY);
    off_t length = lseek(file, 0, SEEK_END);
    CHECK(file >= 0 && length > 0);
    copy_length = (uint64_t)length;
    copy = (unsigned char *)malloc(copy_length);
    CHECK(copy && pread(file, copy, copy_length, 0) == (ssize_t)copy_length);
    close(file);
}

/* Has the harness do something with the node. */
static void ask(const char *what) {
    char line[64];
    printf("%s\n", what);
    fflush(stdout);
    CHECK(fgets(line, sizeof line, stdin) != NULL);
}

static forebay_options with_size(void) {
    forebay_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    return options;
}

static forebay_ring *open_ring_at(const char *where, uint32_t entries, uint64_t timeout_us, uint32_t flags) {
    forebay_options options = with_size();
    forebay_ring *ring;
    options.entries = entries;
    options.timeout_us = timeout_us;
    options.flags = flags;
    CHECK(forebay_open(where, &options, &ring) == 0 && ring);
    return ring;
}

static forebay_ring *open_ring(uint32_t entries, uint64_t timeout_us, uint32_t flags) {
    return open_ring_at(endpoint, entries, timeout_us, flags);
}

static forebay_file open_file(forebay_ring *ring) {
    forebay_file file;
    uint64_t length, generation;
    CHECK(forebay_file_open(ring, name, 0, &file) == 0 && file != 0);
    CHECK(forebay_file_length(ring, file, &length) == 0 && length == copy_length);
    CHECK(forebay_file_generation(ring, file, &generation) == 0 && generation > 0);
    return file;
}

static void prepare(forebay_ring *ring, forebay_file file, void *buffer, uint64_t length, uint64_t offset,
                    uint64_t user_data) {
    forebay_sqe *sqe = forebay_get_sqe(ring);
    CHECK(sqe);
    CHECK(forebay_prep_read(sqe, file, buffer, length, offset) == 0);
    sqe->user_data = user_data;
}

static forebay_cqe next(forebay_ring *ring) {
    const forebay_cqe *cqe, *again;
    forebay_cqe kept;
    CHECK(forebay_wait_cqe(ring, &cqe, -1) == 0 && cqe);
    CHECK(forebay_peek_cqe(ring, &again) == 0 && again == cqe);
    kept = *cqe;
    if (kept.result < 0) {
        CHECK(forebay_last_error()[0] != '\0');
    }
    CHECK(forebay_cqe_seen(ring, cqe) == 0);
    REFUSED(FOREBAY_INVALID, forebay_cqe_seen(ring, cqe));
    return kept;
}

static forebay_cqe read_at(forebay_ring *ring, forebay_file file, void *buffer, uint64_t length,
                           uint64_t offset) {
    forebay_cqe cqe;
    prepare(ring, file, buffer, length, offset, offset ^ 77);
    CHECK(forebay_submit(ring) == 1);
    cqe = next(ring);
    CHECK(cqe.user_data == (offset ^ 77) && cqe.reserved == 0);
    return cqe;
}

static void *allocate(forebay_ring *ring, uint64_t length) {
    void *memory;
    CHECK(forebay_alloc(ring, length, &memory) == 0 && memory);
    CHECK(((uintptr_t)memory & 4095) == 0);
    return memory;
}

static void nothing_is_a_null_pointer(void) {
    forebay_ring *ring = open_ring(4, 0, 0);
    forebay_file file = open_file(ring);
    forebay_writer writer;
    const forebay_cqe *cqe;
    void *memory;
    char bytes[8];
    uint64_t number;
    REFUSED(FOREBAY_INVALID, forebay_open(endpoint, NULL, NULL));
    REFUSED(FOREBAY_INVALID, forebay_close(NULL));
    REFUSED(FOREBAY_INVALID, forebay_alloc(NULL, 1, &memory));
    REFUSED(FOREBAY_INVALID, forebay_alloc(ring, 1, NULL));
    REFUSED(FOREBAY_INVALID, forebay_free(NULL, bytes));
    REFUSED(FOREBAY_INVALID, forebay_free(ring, NULL));
    REFUSED(FOREBAY_INVALID, forebay_get_caps(ring, NULL));
    REFUSED(FOREBAY_INVALID, forebay_file_open(NULL, name, 0, &file));
    REFUSED(FOREBAY_INVALID, forebay_file_open(ring, NULL, 0, &writer));
    REFUSED(FOREBAY_INVALID, forebay_file_open(ring, name, 0, NULL));
    REFUSED(FOREBAY_INVALID, forebay_file_close(NULL, file));
    REFUSED(FOREBAY_INVALID, forebay_file_close(ring, 0));
    REFUSED(FOREBAY_INVALID, forebay_file_length(NULL, file, &number));
    REFUSED(FOREBAY_INVALID, forebay_file_length(ring, file, NULL));
    REFUSED(FOREBAY_INVALID, forebay_file_generation(ring, 0, &number));
    CHECK(forebay_get_sqe(NULL) == NULL);
    REFUSED(FOREBAY_INVALID, forebay_prep_read(NULL, file, bytes, 8, 0));
    REFUSED(FOREBAY_INVALID, forebay_submit(NULL));
    REFUSED(FOREBAY_INVALID, forebay_peek_cqe(NULL, &cqe));
    REFUSED(FOREBAY_INVALID, forebay_peek_cqe(ring, NULL));
    REFUSED(FOREBAY_INVALID, forebay_wait_cqe(NULL, &cqe, 0));
    REFUSED(FOREBAY_INVALID, forebay_wait_cqe(ring, NULL, 0));
    REFUSED(FOREBAY_INVALID, forebay_cqe_seen(NULL, NULL));
    REFUSED(FOREBAY_INVALID, forebay_cqe_seen(ring, NULL));
    REFUSED(FOREBAY_INVALID, forebay_create(NULL, name, 0, &writer));
    REFUSED(FOREBAY_INVALID, forebay_create(ring, NULL, 0, &writer));
    REFUSED(FOREBAY_INVALID, forebay_create(ring, "out/a", 0, NULL));
    REFUSED(FOREBAY_INVALID, forebay_write(NULL, 1, bytes, 8, 0));
    REFUSED(FOREBAY_INVALID, forebay_write(ring, 0, bytes, 8, 0));
    REFUSED(FOREBAY_INVALID, forebay_commit(NULL, 1, 0, NULL));
    REFUSED(FOREBAY_INVALID, forebay_commit(ring, file, 0, NULL));
    REFUSED(FOREBAY_INVALID, forebay_abort(NULL, 1));
    REFUSED(FOREBAY_INVALID, forebay_abort(ring, file));
    CHECK(read_at(ring, file, NULL, 8, 0).result == -FOREBAY_INVALID);
    CHECK(forebay_close(ring) == 0);
}

static void sizes_are_looked_at(void) {
    forebay_options options = with_size();
    forebay_ring *ring = NULL;
    forebay_caps caps;
    struct {
        forebay_options options;
        uint64_t news;
    } newer;
    options.size = 0;
    REFUSED(FOREBAY_INVALID, forebay_open(endpoint, &options, &ring));
    options.size = sizeof options - 8;
    REFUSED(FOREBAY_INVALID, forebay_open(endpoint, &options, &ring));
    options.size = 1u << 20;
    REFUSED(FOREBAY_INVALID, forebay_open(endpoint, &options, &ring));
    options = with_size();
    options.flags = 1u << 31;
    REFUSED(FOREBAY_INVALID, forebay_open(endpoint, &options, &ring));
    options = with_size();
    options.entries = 1u << 17;
    REFUSED(FOREBAY_INVALID, forebay_open(endpoint, &options, &ring));
    CHECK(ring == NULL);
    memset(&newer, 0, sizeof newer);
    newer.options = with_size();
    newer.options.size = sizeof newer;
    newer.news = 1;
    REFUSED(FOREBAY_UNSUPPORTED, forebay_open(endpoint, &newer.options, &ring));
    newer.news = 0;
    CHECK(forebay_open(endpoint, &newer.options, &ring) == 0);
    memset(&caps, 0, sizeof caps);
    REFUSED(FOREBAY_INVALID, forebay_get_caps(ring, &caps));
    caps.size = sizeof caps;
    CHECK(forebay_get_caps(ring, &caps) == 0);
    CHECK(caps.size == sizeof caps && caps.abi == FOREBAY_ABI && caps.abi == forebay_abi());
    CHECK(caps.fabric == FOREBAY_FABRIC_SHARED_MEMORY && caps.entries == 256 && caps.credits > 0);
    CHECK(caps.features == (FOREBAY_CAP_ZERO_COPY | FOREBAY_CAP_CONNECTED | FOREBAY_CAP_RECONNECTS));
    CHECK(caps.block_bytes >= 512 && caps.max_transfer_bytes >= caps.block_bytes);
    CHECK(forebay_close(ring) == 0);
    caps.size = sizeof caps;
    CHECK(forebay_get_caps(NULL, &caps) == 0 && caps.fabric == FOREBAY_FABRIC_NONE);
    CHECK(caps.features == 0 && caps.entries == 0 && strlen(forebay_version()) >= 5);
    CHECK(strcmp(forebay_strerror(FOREBAY_STALE), forebay_strerror(-FOREBAY_STALE)) == 0);
}

static void names_are_looked_at(void) {
    forebay_ring *ring;
    forebay_file file = 1;
    REFUSED(FOREBAY_INVALID, forebay_open("nonsense", NULL, &ring));
    REFUSED(FOREBAY_INVALID, forebay_open("\xff", NULL, &ring));
    REFUSED(FOREBAY_INVALID, forebay_open(NULL, NULL, &ring));
    REFUSED(FOREBAY_DISCONNECTED, forebay_open("unix:/nobody/listens/here", NULL, &ring));
    ring = open_ring(0, 0, 0);
    REFUSED(FOREBAY_INVALID, forebay_file_open(ring, "no-slash", 0, &file));
    CHECK(file == 0);
    REFUSED(FOREBAY_NOT_FOUND, forebay_file_open(ring, "data/missing", 0, &file));
    CHECK(strstr(forebay_last_error(), "data/missing"));
    REFUSED(FOREBAY_STALE, forebay_file_open(ring, name, 12345, &file));
    CHECK(forebay_close(ring) == 0);
}

static void a_full_ring_says_so(void) {
    forebay_ring *ring = open_ring(4, 0, 0);
    forebay_file file = open_file(ring);
    unsigned char *memory = (unsigned char *)allocate(ring, 4 * 4096);
    const forebay_cqe *cqe;
    uint64_t read, seen = 0;
    REFUSED(FOREBAY_TIMED_OUT, forebay_peek_cqe(ring, &cqe));
    CHECK(cqe == NULL);
    REFUSED(FOREBAY_INVALID, forebay_wait_cqe(ring, &cqe, -1));
    for (read = 0; read < 4; read++) {
        prepare(ring, file, memory + read * 4096, 4096, read * 4096, read);
    }
    CHECK(forebay_get_sqe(ring) == NULL);
    CHECK(forebay_submit(ring) == 4 && forebay_submit(ring) == 0);
    CHECK(forebay_get_sqe(ring) == NULL);
    for (read = 0; read < 4; read++) {
        forebay_cqe done = next(ring);
        CHECK(done.result == 4096 && done.user_data < 4 && !(seen & 1u << done.user_data));
        CHECK(memcmp(memory + done.user_data * 4096, copy + done.user_data * 4096, 4096) == 0);
        seen |= 1u << done.user_data;
        /* Not prepared, and still it completes. */
        CHECK(forebay_get_sqe(ring) != NULL);
    }
    CHECK(forebay_submit(ring) == 4);
    for (read = 0; read < 4; read++) {
        CHECK(next(ring).result == -FOREBAY_INVALID);
    }
    /* A ring is closed with everything under way. */
    prepare(ring, file, memory, 4096, 0, 0);
    CHECK(forebay_submit(ring) == 1);
    prepare(ring, file, memory, 4096, 0, 0);
    CHECK(forebay_close(ring) == 0);
}

static forebay_sqe *good(forebay_ring *ring, forebay_file file, unsigned char *bytes) {
    forebay_sqe *sqe = forebay_get_sqe(ring);
    CHECK(sqe && sqe->opcode == FOREBAY_OP_NONE && sqe->user_data == 0);
    CHECK(forebay_prep_read(sqe, file, bytes, 16, 0) == 0);
    return sqe;
}

static void requests_are_looked_at(void) {
    forebay_ring *ring = open_ring(8, 0, 0);
    forebay_file file = open_file(ring);
    unsigned char *memory = (unsigned char *)allocate(ring, 8192), bytes[16];
    int request;
    good(ring, file, bytes)->opcode = 77;
    good(ring, file, bytes)->flags = 1;
    good(ring, file, bytes)->reserved[1] = 1;
    good(ring, file, bytes)->offset = UINT64_MAX;
    good(ring, file, bytes)->length = UINT64_MAX / 2 + 1;
    good(ring, file, bytes)->file = file + 1;
    good(ring, file, bytes)->buffer = memory + 8192 - 15;
    good(ring, file, bytes)->buffer = memory - 1;
    CHECK(forebay_submit(ring) == 8);
    for (request = 0; request < 8; request++) {
        CHECK(next(ring).result == -FOREBAY_INVALID);
    }
    good(ring, file, bytes);
    CHECK(forebay_submit(ring) == 1 && next(ring).result == 16);
    CHECK(forebay_close(ring) == 0);
}

static void what_is_closed_stays_closed(void) {
    forebay_ring *ring = open_ring(4, 0, 0), *other = open_ring(4, 0, 0);
    forebay_file file = open_file(ring), second = open_file(other);
    unsigned char bytes[16];
    uint64_t number;
    int times;
    REFUSED(FOREBAY_INVALID, forebay_file_length(ring, second, &number));
    REFUSED(FOREBAY_INVALID, forebay_file_close(ring, second));
    CHECK(forebay_file_close(ring, file) == 0);
    REFUSED(FOREBAY_INVALID, forebay_file_close(ring, file));
    CHECK(read_at(ring, file, bytes, 16, 0).result == -FOREBAY_INVALID);
    CHECK(open_file(ring) != file);
    CHECK(forebay_close(ring) == 0);
    for (times = 0; times < 3; times++) {
        REFUSED(FOREBAY_INVALID, forebay_close(ring));
        REFUSED(FOREBAY_INVALID, forebay_submit(ring));
        CHECK(forebay_get_sqe(ring) == NULL);
    }
    CHECK(read_at(other, second, bytes, 16, 0).result == 16 && memcmp(bytes, copy, 16) == 0);
    CHECK(forebay_close(other) == 0);
}

static void bytes_arrive_where_they_should(void) {
    forebay_ring *ring = open_ring(8, 0, FOREBAY_VERIFY);
    forebay_file file = open_file(ring);
    unsigned char *direct = (unsigned char *)allocate(ring, copy_length + 4096);
    unsigned char *own = (unsigned char *)malloc(copy_length + 4096);
    uint64_t offsets[4], at;
    void *none = own;
    int turn;
    CHECK(own != NULL);
    offsets[0] = 0, offsets[1] = 1, offsets[2] = copy_length - 1, offsets[3] = copy_length + 10;
    for (at = 0; at < 4; at++) {
        for (turn = 0; turn < 2; turn++) {
            unsigned char *into = turn ? own : direct;
            uint64_t left = offsets[at] < copy_length ? copy_length - offsets[at] : 0;
            forebay_cqe done = read_at(ring, file, into, copy_length + 4096, offsets[at]);
            CHECK(done.result == (int64_t)left && memcmp(into, copy + copy_length - left, left) == 0);
            CHECK(!(done.flags & FOREBAY_PATH_CLIENT_COPY) == !turn);
        }
    }
    CHECK(read_at(ring, file, direct + copy_length, 4097, 0).result == -FOREBAY_INVALID);
    CHECK(read_at(ring, file, direct, UINT64_MAX, 0).result == -FOREBAY_INVALID);
    CHECK(read_at(ring, file, direct, 1, UINT64_MAX).result == -FOREBAY_INVALID);
    REFUSED(FOREBAY_NO_SPACE, forebay_alloc(ring, UINT64_MAX, &none));
    CHECK(none == NULL);
    REFUSED(FOREBAY_INVALID, forebay_alloc(ring, 0, &none));
    REFUSED(FOREBAY_INVALID, forebay_free(ring, direct + 4096));
    CHECK(forebay_free(ring, direct) == 0);
    REFUSED(FOREBAY_INVALID, forebay_free(ring, direct));
    CHECK(forebay_close(ring) == 0);
    free(own);
}

static void generations_appear_whole(void) {
    forebay_ring *ring = open_ring(4, 0, 0);
    forebay_writer writer, second;
    forebay_file file;
    uint64_t generation = 0, length = 0;
    unsigned char *bytes = (unsigned char *)allocate(ring, 100000);
    unsigned char own[3000], back[3000];
    memset(bytes, 5, 100000);
    memset(own, 6, sizeof own);
    CHECK(forebay_create(ring, "out/c", 0, &writer) == 0);
    CHECK(forebay_write(ring, writer, bytes, 100000, 0) == 0);
    CHECK(forebay_write(ring, writer, own, sizeof own, 100000) == 0);
    REFUSED(FOREBAY_INVALID, forebay_write(ring, writer, bytes, 100001, 0));
    REFUSED(FOREBAY_NOT_FOUND, forebay_file_open(ring, "out/c", 0, &file));
    CHECK(read_at(ring, writer, back, 10, 0).result == -FOREBAY_INVALID);
    CHECK(forebay_commit(ring, writer, 103000, &generation) == 0 && generation > 0);
    REFUSED(FOREBAY_INVALID, forebay_commit(ring, writer, 103000, NULL));
    REFUSED(FOREBAY_INVALID, forebay_write(ring, writer, own, 1, 0));
    CHECK(forebay_create(ring, "out/c", 0, &second) == 0 && second != writer);
    CHECK(forebay_write(ring, second, bytes, 10, 0) == 0 && forebay_abort(ring, second) == 0);
    REFUSED(FOREBAY_INVALID, forebay_abort(ring, second));
    CHECK(forebay_file_open(ring, "out/c", 0, &file) == 0);
    CHECK(forebay_file_length(ring, file, &length) == 0 && length == 103000);
    CHECK(read_at(ring, file, back, 3000, 100000).result == 3000 && memcmp(back, own, 3000) == 0);
    CHECK(forebay_close(ring) == 0);
}

static void a_child_leaves_the_parents_ring_alone(void) {
    forebay_ring *ring = open_ring(4, 0, 0);
    forebay_file file = open_file(ring);
    unsigned char bytes[64];
    const forebay_cqe *cqe;
    int status;
    pid_t child;
    prepare(ring, file, bytes, 64, 0, 1);
    CHECK(forebay_submit(ring) == 1);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        forebay_ring *own;
        REFUSED(FOREBAY_FORKED, forebay_submit(ring));
        REFUSED(FOREBAY_FORKED, forebay_wait_cqe(ring, &cqe, -1));
        REFUSED(FOREBAY_FORKED, forebay_file_close(ring, file));
        REFUSED(FOREBAY_FORKED, forebay_close(ring));
        CHECK(forebay_get_sqe(ring) == NULL);
        own = open_ring(4, 0, 0);
        file = open_file(own);
        CHECK(read_at(own, file, bytes, 64, 5).result == 64 && memcmp(bytes, copy + 5, 64) == 0);
        CHECK(forebay_close(own) == 0);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(next(ring).result == 64 && memcmp(bytes, copy, 64) == 0);
    CHECK(read_at(ring, file, bytes, 64, 5).result == 64);
    CHECK(forebay_close(ring) == 0);
}

static void *take_over(void *ring) {
    forebay_ring *own = (forebay_ring *)ring;
    forebay_file file = open_file(own);
    unsigned char bytes[64];
    CHECK(read_at(own, file, bytes, 64, 9).result == 64 && memcmp(bytes, copy + 9, 64) == 0);
    REFUSED(FOREBAY_INVALID, forebay_close(NULL));
    return NULL;
}

static void a_ring_may_be_handed_to_another_thread(void) {
    forebay_ring *ring = open_ring(4, 0, 0);
    pthread_t thread;
    REFUSED(FOREBAY_INVALID, forebay_open("nonsense", NULL, NULL));
    CHECK(pthread_create(&thread, NULL, take_over, ring) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(strstr(forebay_last_error(), "place for the result") != NULL);
    CHECK(forebay_close(ring) == 0);
}

/* The node neither answers nor goes away. */
static void nobody_waits_for_ever(void) {
    forebay_ring *ring = open_ring(4, 3000000, FOREBAY_NO_RECONNECT);
    forebay_file file = open_file(ring);
    unsigned char *memory = (unsigned char *)allocate(ring, 4096), own[64];
    const forebay_cqe *cqe;
    forebay_cqe first, second;
    uint64_t number;
    ask("pause");
    prepare(ring, file, memory, 64, 0, 1);
    prepare(ring, file, own, 64, 0, 2);
    CHECK(forebay_submit(ring) == 2);
    REFUSED(FOREBAY_TIMED_OUT, forebay_peek_cqe(ring, &cqe));
    REFUSED(FOREBAY_TIMED_OUT, forebay_wait_cqe(ring, &cqe, 0));
    REFUSED(FOREBAY_TIMED_OUT, forebay_wait_cqe(ring, &cqe, 1000));
    first = next(ring), second = next(ring);
    CHECK(first.user_data + second.user_data == 3);
    CHECK((first.user_data == 1 ? first : second).result == -FOREBAY_MEMORY_LOST);
    CHECK((first.user_data == 1 ? second : first).result == -FOREBAY_DISCONNECTED);
    REFUSED(FOREBAY_DISCONNECTED, forebay_file_open(ring, name, 0, &file));
    CHECK(forebay_file_length(ring, file, &number) == -FOREBAY_INVALID);
    CHECK(forebay_close(ring) == 0);
    ask("resume");
}

/* The node is killed, and is back later. */
static void a_node_that_comes_back_is_found(void) {
    forebay_ring *ring = open_ring(8, 10000000, 0), *other = open_ring(8, 10000000, FOREBAY_NO_RECONNECT);
    forebay_ring *tcp = open_ring_at(tcp_endpoint, 8, 10000000, FOREBAY_NO_RECONNECT);
    forebay_file file = open_file(ring), gone = open_file(other), far = open_file(tcp);
    unsigned char *theirs = (unsigned char *)allocate(tcp, 4096);
    unsigned char *lost = (unsigned char *)allocate(ring, 8192), own[4096];
    forebay_writer writer;
    forebay_caps caps;
    CHECK(read_at(ring, file, lost, 4096, 0).result == 4096);
    CHECK(read_at(tcp, far, theirs, 4096, 3).result == 4096 && memcmp(theirs, copy + 3, 4096) == 0);
    CHECK(forebay_create(ring, "out/d", 0, &writer) == 0);
    ask("kill");
    prepare(ring, file, own, 4096, 100, 7);
    CHECK(forebay_submit(ring) == 1);
    CHECK(next(ring).result == -FOREBAY_DISCONNECTED);
    CHECK(memcmp(lost, copy, 4096) == 0);
    CHECK(read_at(other, gone, own, 64, 0).result == -FOREBAY_DISCONNECTED);
    /* Neither a signal nor lost memory: nobody but this process writes to it. */
    CHECK(read_at(tcp, far, theirs, 64, 0).result == -FOREBAY_DISCONNECTED);
    CHECK(read_at(tcp, far, own, 64, 0).result == -FOREBAY_DISCONNECTED);
    CHECK(forebay_free(tcp, theirs) == 0 && forebay_close(tcp) == 0);
    ask("start");
    CHECK(read_at(ring, file, own, 4096, 100).result == 4096 && memcmp(own, copy + 100, 4096) == 0);
    CHECK(read_at(ring, file, lost + 4096, 4096, 0).result == -FOREBAY_MEMORY_LOST);
    CHECK(forebay_free(ring, lost) == 0);
    lost = (unsigned char *)allocate(ring, 8192);
    CHECK(read_at(ring, file, lost, 4096, 7).result == 4096 && memcmp(lost, copy + 7, 4096) == 0);
    REFUSED(FOREBAY_DISCONNECTED, forebay_write(ring, writer, own, 10, 0));
    CHECK(forebay_abort(ring, writer) == 0);
    memset(&caps, 0, sizeof caps);
    caps.size = sizeof caps;
    CHECK(forebay_get_caps(ring, &caps) == 0 && caps.reconnections >= 1);
    CHECK(read_at(other, gone, own, 64, 0).result == -FOREBAY_DISCONNECTED);
    CHECK(forebay_close(other) == 0 && forebay_close(ring) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 5);
    endpoint = argv[1];
    tcp_endpoint = argv[2];
    name = argv[3];
    load_copy(argv[4]);
    nothing_is_a_null_pointer();
    sizes_are_looked_at();
    names_are_looked_at();
    a_full_ring_says_so();
    requests_are_looked_at();
    what_is_closed_stays_closed();
    bytes_arrive_where_they_should();
    generations_appear_whole();
    a_child_leaves_the_parents_ring_alone();
    a_ring_may_be_handed_to_another_thread();
    nobody_waits_for_ever();
    a_node_that_comes_back_is_found();
    free(copy);
    puts("all is as it should be");
    return 0;
}
