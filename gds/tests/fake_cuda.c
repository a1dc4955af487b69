// A driver without a GPU, for tests: what Forebay uses of libcuda, over ordinary memory.
//
// A stream's work is done a step at a time, when somebody asks for an event, so that nothing is done
// before somebody waits for it. Every call is checked: for a current context, for handles and ranges that
// exist, for pinned memory. Where NVIDIA's cuda.h is found, the compiler compares these functions with it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#if __has_include(<cuda.h>)
#include <cuda.h>
#else
typedef unsigned int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef unsigned int CUmemorytype;
typedef int CUdevice_attribute;
typedef int CUpointer_attribute;
typedef unsigned int CUmemRangeHandleType;
typedef unsigned int CUflushGPUDirectRDMAWritesTarget;
typedef unsigned int CUflushGPUDirectRDMAWritesScope;
#define CUDAAPI
#define CUDA_SUCCESS 0
#define CUDA_ERROR_INVALID_VALUE 1
#define CUDA_ERROR_OUT_OF_MEMORY 2
#define CUDA_ERROR_NO_DEVICE 100
#define CUDA_ERROR_INVALID_DEVICE 101
#define CUDA_ERROR_INVALID_CONTEXT 201
#define CUDA_ERROR_INVALID_HANDLE 400
#define CUDA_ERROR_NOT_READY 600
#define CUDA_ERROR_LAUNCH_FAILED 719
#define CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED 712
#define CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED 713
#define CUDA_ERROR_NOT_SUPPORTED 801
#define CU_STREAM_NON_BLOCKING 1
#define CU_EVENT_DISABLE_TIMING 2
#define CU_MEMHOSTREGISTER_PORTABLE 1
#define CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED 124
#define CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS 117
#define CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING 118
#define CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST 1
#define CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER 100
#define CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX 0
#define CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER 100
#define CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD 1
#define CU_POINTER_ATTRIBUTE_BUFFER_ID 7
#define CU_POINTER_ATTRIBUTE_MEMORY_TYPE 2
#define CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL 9
#define CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE 10
#define CU_POINTER_ATTRIBUTE_RANGE_START_ADDR 11
#define CU_POINTER_ATTRIBUTE_RANGE_SIZE 12
#define CU_MEMORYTYPE_DEVICE 2
#define cuDeviceTotalMem cuDeviceTotalMem_v2
#define cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2
#define cuCtxPushCurrent cuCtxPushCurrent_v2
#define cuCtxPopCurrent cuCtxPopCurrent_v2
#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuMemHostRegister cuMemHostRegister_v2
#define cuMemcpyHtoDAsync cuMemcpyHtoDAsync_v2
#define cuMemcpyDtoHAsync cuMemcpyDtoHAsync_v2
#define cuStreamDestroy cuStreamDestroy_v2
#define cuEventDestroy cuEventDestroy_v2
#endif

// Addresses of the device are none of the host's.
#define BIAS 0x5000000000000000ull
#define MOST 4096
#define BYTES ((size_t)256 << 20)

enum kind { TO_DEVICE, TO_HOST, RECORD, WAIT };

struct op {
    enum kind kind;
    char *to;
    const char *from;
    size_t bytes;
    struct CUevent_st *event;
    uint64_t mark;
    struct op *next;
};

struct CUstream_st {
    int alive;
    struct op *first, **last;
};

struct CUevent_st {
    int alive;
    struct CUstream_st *stream;
    uint64_t recorded, passed;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { char *base; size_t bytes; } pins[MOST];
// Each in a file of its own, which is what exporting it gives.
static struct { char *base; size_t bytes; int file; unsigned long long number; } memory[MOST];
static struct CUstream_st *streams[MOST];
static size_t used, retained, alive_events;
// What is named by no handle: the default stream.
static struct CUstream_st by_default = {.alive = 1, .last = &by_default.first};
static unsigned long long allocations;
static int has_gpu = 1, initialised, lost, stalled, exports = 1, pooled, ordering, flushes;
static CUresult next_copy;
static struct CUctx_st *const context = (struct CUctx_st *)&memory;
static __thread int depth;

// What the tests turn.
void fake_cuda_has_gpu(int has) { has_gpu = has; }
void fake_cuda_next_copy(unsigned int answer) { next_copy = (CUresult)answer; }
void fake_cuda_lose(int it) { lost = it; }
void fake_cuda_stall(int it) { stalled = it; }
void fake_cuda_exports(int does) { exports = does; }
// Whether memory is that of a pool.
void fake_cuda_pooled(int is) { pooled = is; }
void fake_cuda_ordering(int how) { ordering = how; }
// How often it was flushed.
int fake_cuda_flushes(void) { return flushes; }
// What is left: bytes of memory, pinned ranges, streams, events, contexts, and contexts of this thread.
void fake_cuda_left(size_t left[6]) {
    pthread_mutex_lock(&lock);
    memset(left, 0, 6 * sizeof *left);
    left[0] = used;
    for (int i = 0; i < MOST; i++) {
        left[1] += pins[i].base != NULL;
        left[2] += streams[i] != NULL && streams[i]->alive;
    }
    left[3] = alive_events;
    left[4] = retained;
    left[5] = (size_t)depth;
    pthread_mutex_unlock(&lock);
}

static CUresult enter(void) {
    pthread_mutex_lock(&lock);
    if (lost) return CUDA_ERROR_LAUNCH_FAILED;
    return depth > 0 && initialised ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult leave(CUresult answer) {
    pthread_mutex_unlock(&lock);
    return answer;
}

#define ENTER                                                                                      \
    CUresult entered = enter();                                                                    \
    if (entered != CUDA_SUCCESS) return leave(entered)

static char *device(CUdeviceptr at, size_t bytes) {
    for (int i = 0; i < MOST; i++) {
        CUdeviceptr base = (CUdeviceptr)(uintptr_t)memory[i].base + BIAS;
        if (memory[i].base && at >= base && bytes <= memory[i].bytes && at - base <= memory[i].bytes - bytes)
            return memory[i].base + (at - base);
    }
    return NULL;
}

static void step(struct CUstream_st *stream) {
    struct op *op = stream->first;
    if (!op || stalled) return;
    if (op->kind == WAIT && op->event->passed < op->mark) {
        step(op->event->stream);
        return;
    }
    if (op->kind == TO_DEVICE || op->kind == TO_HOST) memcpy(op->to, op->from, op->bytes);
    if (op->kind == RECORD && op->event->passed < op->mark) op->event->passed = op->mark;
    stream->first = op->next;
    if (!stream->first) stream->last = &stream->first;
    free(op);
}

static CUresult queue(CUstream stream, struct op wanted) {
    if (!stream) stream = &by_default;
    if (!stream->alive) return CUDA_ERROR_INVALID_HANDLE;
    struct op *op = malloc(sizeof *op);
    *op = wanted;
    op->next = NULL;
    *stream->last = op;
    stream->last = &op->next;
    return CUDA_SUCCESS;
}

// Where memory of the device is, for the cuFile without a GPU beside this.
unsigned int fake_cuda_reach(unsigned long long at, size_t bytes, char **there) {
    ENTER;
    *there = device(at, bytes);
    return leave(*there ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult CUDAAPI cuInit(unsigned int flags) {
    initialised = has_gpu && flags == 0;
    return initialised ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char **name) {
    switch ((unsigned int)error) {
    case CUDA_ERROR_OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case CUDA_ERROR_NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case CUDA_ERROR_LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case CUDA_ERROR_NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; break;
    default: *name = NULL; return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGetErrorString(CUresult error, const char **words) {
    *words = (unsigned int)error == CUDA_ERROR_NO_DEVICE ? "no CUDA-capable device is detected" : NULL;
    return *words ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuDeviceGetCount(int *count) {
    *count = has_gpu;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice *found, int ordinal) {
    *found = 40 + ordinal;
    return ordinal == 0 && has_gpu ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult CUDAAPI cuDeviceGetName(char *name, int length, CUdevice which) {
    snprintf(name, (size_t)length, "a driver without a GPU, %d", which);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute what, CUdevice which) {
    if (which != 40) return CUDA_ERROR_INVALID_VALUE;
    switch ((int)what) {
    case CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING: *value = ordering; break;
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS:
        *value = CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST;
        break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceTotalMem(size_t *bytes, CUdevice which) {
    *bytes = BYTES;
    return which == 40 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice which) {
    if (which != 40 || !initialised) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    retained++;
    *out = context;
    return leave(CUDA_SUCCESS);
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice which) {
    pthread_mutex_lock(&lock);
    if (which != 40 || retained == 0) return leave(CUDA_ERROR_INVALID_CONTEXT);
    retained--;
    return leave(CUDA_SUCCESS);
}

CUresult CUDAAPI cuCtxPushCurrent(CUcontext it) {
    if (it != context) return CUDA_ERROR_INVALID_CONTEXT;
    depth++;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPopCurrent(CUcontext *it) {
    *it = context;
    return depth-- > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult CUDAAPI cuPointerGetAttribute(void *value, CUpointer_attribute what, CUdeviceptr at) {
    ENTER;
    if (!device(at, 1)) return leave(CUDA_ERROR_INVALID_VALUE);
    for (int i = 0; i < MOST; i++) {
        CUdeviceptr base = (CUdeviceptr)(uintptr_t)memory[i].base + BIAS;
        if (!memory[i].base || at < base || at - base >= memory[i].bytes) continue;
        switch ((int)what) {
        case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: *(unsigned char *)value = !pooled; break;
        case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)value = memory[i].number; break;
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned int *)value = CU_MEMORYTYPE_DEVICE; break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = 0; break;
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)value = base; break;
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)value = memory[i].bytes; break;
        default: return leave(CUDA_ERROR_INVALID_VALUE);
        }
    }
    return leave(CUDA_SUCCESS);
}

CUresult CUDAAPI cuMemAlloc(CUdeviceptr *out, size_t bytes) {
    ENTER;
    if (bytes == 0) return leave(CUDA_ERROR_INVALID_VALUE);
    if (bytes > BYTES - used) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    for (int i = 0; i < MOST; i++) {
        if (memory[i].base) continue;
        memory[i].file = memfd_create("fake-cuda", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (ftruncate(memory[i].file, (off_t)bytes) || fcntl(memory[i].file, F_ADD_SEALS, F_SEAL_SHRINK))
            return leave(CUDA_ERROR_OUT_OF_MEMORY);
        char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory[i].file, 0);
        if (base == MAP_FAILED) return leave(CUDA_ERROR_OUT_OF_MEMORY);
        memory[i].base = base;
        memory[i].bytes = bytes;
        memory[i].number = ++allocations;
        memset(memory[i].base, 0xA5, bytes);
        used += bytes;
        *out = (CUdeviceptr)(uintptr_t)memory[i].base + BIAS;
        return leave(CUDA_SUCCESS);
    }
    return leave(CUDA_ERROR_OUT_OF_MEMORY);
}

CUresult CUDAAPI cuMemFree(CUdeviceptr at) {
    ENTER;
    for (int i = 0; i < MOST; i++) {
        if (!memory[i].base || at != (CUdeviceptr)(uintptr_t)memory[i].base + BIAS) continue;
        // As the driver does, work that is queued is finished before.
        for (int s = 0; s < MOST; s++)
            while (streams[s] && streams[s]->first) step(streams[s]);
        munmap(memory[i].base, memory[i].bytes);
        close(memory[i].file);
        memory[i].base = NULL;
        used -= memory[i].bytes;
        return leave(CUDA_SUCCESS);
    }
    return leave(CUDA_ERROR_INVALID_VALUE);
}

CUresult CUDAAPI cuMemGetHandleForAddressRange(void *handle, CUdeviceptr at, size_t bytes,
                                               CUmemRangeHandleType type, unsigned long long flags) {
    ENTER;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!exports) return leave(CUDA_ERROR_NOT_SUPPORTED);
    if ((unsigned int)type != CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD || flags || bytes == 0 || at % page || bytes % page)
        return leave(CUDA_ERROR_INVALID_VALUE);
    for (int i = 0; i < MOST; i++) {
        // Its front only: the file has no beginning but that.
        if (!memory[i].base || at != (CUdeviceptr)(uintptr_t)memory[i].base + BIAS) continue;
        if (bytes > memory[i].bytes) return leave(CUDA_ERROR_INVALID_VALUE);
        *(int *)handle = fcntl(memory[i].file, F_DUPFD_CLOEXEC, 0);
        return leave(CUDA_SUCCESS);
    }
    return leave(CUDA_ERROR_INVALID_VALUE);
}

CUresult CUDAAPI cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target,
                                            CUflushGPUDirectRDMAWritesScope scope) {
    ENTER;
    if ((unsigned int)target != CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX ||
        (unsigned int)scope != CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER)
        return leave(CUDA_ERROR_INVALID_VALUE);
    flushes++;
    return leave(CUDA_SUCCESS);
}

CUresult CUDAAPI cuMemHostRegister(void *at, size_t bytes, unsigned int flags) {
    ENTER;
    int place = -1;
    if (flags != CU_MEMHOSTREGISTER_PORTABLE || bytes == 0) return leave(CUDA_ERROR_INVALID_VALUE);
    for (int i = 0; i < MOST; i++) {
        if (!pins[i].base) place = i;
        else if ((char *)at < pins[i].base + pins[i].bytes && pins[i].base < (char *)at + bytes)
            return leave(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    }
    if (place < 0) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    pins[place].base = at;
    pins[place].bytes = bytes;
    return leave(CUDA_SUCCESS);
}

CUresult CUDAAPI cuMemHostUnregister(void *at) {
    ENTER;
    for (int i = 0; i < MOST; i++) {
        if (pins[i].base != at) continue;
        pins[i].base = NULL;
        return leave(CUDA_SUCCESS);
    }
    return leave(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER;
    CUresult answer = next_copy;
    next_copy = CUDA_SUCCESS;
    if (answer != CUDA_SUCCESS) return leave(answer);
    char *there = device(to, bytes);
    if (!there) return leave(CUDA_ERROR_INVALID_VALUE);
    return leave(queue(stream, (struct op){.kind = TO_DEVICE, .to = there, .from = from, .bytes = bytes}));
}

CUresult CUDAAPI cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER;
    const char *there = device(from, bytes);
    if (!there) return leave(CUDA_ERROR_INVALID_VALUE);
    return leave(queue(stream, (struct op){.kind = TO_HOST, .to = to, .from = there, .bytes = bytes}));
}

CUresult CUDAAPI cuStreamCreate(CUstream *out, unsigned int flags) {
    ENTER;
    if (flags != CU_STREAM_NON_BLOCKING) return leave(CUDA_ERROR_INVALID_VALUE);
    for (int i = 0; i < MOST; i++) {
        if (streams[i]) continue;
        streams[i] = calloc(1, sizeof *streams[i]);
        streams[i]->alive = 1;
        streams[i]->last = &streams[i]->first;
        *out = streams[i];
        return leave(CUDA_SUCCESS);
    }
    return leave(CUDA_ERROR_OUT_OF_MEMORY);
}

CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
    ENTER;
    if (!stream || !stream->alive) return leave(CUDA_ERROR_INVALID_HANDLE);
    stream->alive = 0;
    return leave(CUDA_SUCCESS);
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    ENTER;
    if (!event || !event->alive || flags) return leave(CUDA_ERROR_INVALID_HANDLE);
    return leave(queue(stream, (struct op){.kind = WAIT, .event = event, .mark = event->recorded}));
}

CUresult CUDAAPI cuEventCreate(CUevent *out, unsigned int flags) {
    ENTER;
    if (flags != CU_EVENT_DISABLE_TIMING) return leave(CUDA_ERROR_INVALID_VALUE);
    *out = calloc(1, sizeof **out);
    (*out)->alive = 1;
    alive_events++;
    return leave(CUDA_SUCCESS);
}

CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
    ENTER;
    if (!event || !event->alive) return leave(CUDA_ERROR_INVALID_HANDLE);
    event->stream = stream ? stream : &by_default;
    event->recorded++;
    return leave(queue(stream, (struct op){.kind = RECORD, .event = event, .mark = event->recorded}));
}

CUresult CUDAAPI cuEventQuery(CUevent event) {
    ENTER;
    if (!event || !event->alive) return leave(CUDA_ERROR_INVALID_HANDLE);
    if (event->passed < event->recorded) step(event->stream);
    return leave(event->passed < event->recorded ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
}

CUresult CUDAAPI cuEventDestroy(CUevent event) {
    ENTER;
    if (!event || !event->alive) return leave(CUDA_ERROR_INVALID_HANDLE);
    // Not freed: work that is queued may still name it.
    event->alive = 0;
    alive_events--;
    return leave(CUDA_SUCCESS);
}
