// An RDMA device that takes memory of other devices, for tests: preloaded, it stands before libibverbs, and registers
// as memory of the host's what comes as a dma-buf and is a file in memory. The rest is the RDMA device's own, such as
// soft-RoCE, whose driver takes no dma-buf.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define MOST 256

struct ibv_pd;
struct ibv_mr;
typedef void *look_up(void *, const char *);
typedef struct ibv_mr *register_at(struct ibv_pd *, void *, size_t, uint64_t, unsigned int);
typedef int unregister(struct ibv_mr *);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { struct ibv_mr *region; void *base; size_t bytes; } known[MOST];
static register_at *real_register;
static unregister *real_unregister;
static int registered, registrations, takes = 1, loses;

// What the tests turn: whether it takes any, and whether what is written there gets lost.
void fake_rdma_takes(int it) { takes = it; }
void fake_rdma_loses(int it) { loses = it; }
// How many there are, and were.
int fake_rdma_registered(void) { return registered; }
int fake_rdma_registrations(void) { return registrations; }

static struct ibv_mr *register_file(struct ibv_pd *domain, uint64_t offset, size_t bytes, uint64_t address, int file,
                                    int access) {
    struct ibv_mr *region = NULL;
    if (!takes) {
        errno = EOPNOTSUPP;
        return NULL;
    }
    // A private copy is written to, and nobody sees it.
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, loses ? MAP_PRIVATE : MAP_SHARED, file, (off_t)offset);
    if (base == MAP_FAILED) return NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST && !region; i++) {
        if (known[i].region) continue;
        region = real_register(domain, base, bytes, address, (unsigned int)access);
        if (!region) break;
        known[i].region = region;
        known[i].base = base;
        known[i].bytes = bytes;
        registered++;
        registrations++;
    }
    pthread_mutex_unlock(&lock);
    if (!region) munmap(base, bytes);
    return region;
}

static int unregister_any(struct ibv_mr *region) {
    int failed = real_unregister(region);
    if (failed) return failed;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++) {
        if (known[i].region != region) continue;
        munmap(known[i].base, known[i].bytes);
        known[i].region = NULL;
        registered--;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

// Who opens libibverbs asks for its functions by this.
void *dlsym(void *library, const char *name) {
    static look_up *real;
    if (!real) real = (look_up *)dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
    if (!real) real = (look_up *)dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    if (strcmp(name, "ibv_reg_dmabuf_mr") == 0) {
        real_register = (register_at *)real(library, "ibv_reg_mr_iova");
        return real_register ? (void *)register_file : NULL;
    }
    if (strcmp(name, "ibv_dereg_mr") == 0) {
        real_unregister = (unregister *)real(library, name);
        return real_unregister ? (void *)unregister_any : NULL;
    }
    return real(library, name);
}
