// A cuFile without a GPU, for tests: what Forebay uses of libcufile, over the driver without a GPU (fake_cuda.c).
//
// Every call is checked: for a driver that is open, a context, handles that exist, O_DIRECT, offsets and ranges,
// memory that is registered once and read into from its front. What breaks the order of things (a descriptor that
// is closed or memory that is freed before it is given back) is counted. Where NVIDIA's cufile.h and cuda.h are
// found, the compiler compares these functions with them.
#define _GNU_SOURCE
#include "fake_cufile.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 256
// CUDA_ERROR_LAUNCH_FAILED, of a device that is lost.
#define LOST 719u

typedef unsigned int (*reach_fn)(unsigned long long, size_t, char **);

struct file {
    int alive, fd, plain;
    dev_t device;
    ino_t inode;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *files[MOST];
static struct { uintptr_t base; size_t bytes; } buffers[MOST];
static size_t opened, violations, longest, reads;
static reach_fn reach;
static char stats[4096];

// What the tests turn.
static int open_answer, open_cuda, properties_answer, version = 1140, register_answer, module = 2, flags = 1 << 4;
static int compatible, goes_direct = 1, most_kib = 16384, fail_answer, fail_errno, close_after;
static size_t most_bytes = SIZE_MAX, fail_after = SIZE_MAX;

void fake_cufile_open_answer(int answer) { open_answer = answer; }
void fake_cufile_open_cuda(int answer) { open_cuda = answer; }
void fake_cufile_properties_answer(int answer) { properties_answer = answer; }
void fake_cufile_register_answer(int answer) { register_answer = answer; }
// The version of nvidia-fs; 0 if it is not loaded. Then nothing goes direct.
void fake_cufile_module(int it) { module = it; }
void fake_cufile_flags(int it) { flags = it; }
void fake_cufile_compatible(int it) { compatible = it; }
void fake_cufile_direct(int it) { goes_direct = it; }
void fake_cufile_most_kib(int it) { most_kib = it; }
// A call brings no more than this.
void fake_cufile_short(int bytes) { most_bytes = bytes < 0 ? SIZE_MAX : (size_t)bytes; }
// The call so many from now answers this, with that errno; so does every one after it.
void fake_cufile_fail_after(int calls) { fail_after = calls < 0 ? SIZE_MAX : reads + (size_t)calls; }
void fake_cufile_fail_answer(int answer) { fail_answer = answer; }
void fake_cufile_fail_errno(int it) { fail_errno = it; }
// Shortens the file to this many bytes after each call; 0 for never.
void fake_cufile_cut_file(int bytes) { close_after = bytes; }
// Where nvidia-fs counts.
void fake_cufile_stats(const char *path) { snprintf(stats, sizeof stats, "%s", path); }
// The library of the driver without a GPU.
void fake_cufile_cuda(const char *path) {
    void *cuda = dlopen(path, RTLD_NOW);
    reach = cuda ? (reach_fn)dlsym(cuda, "fake_cuda_reach") : NULL;
}
// What is left: files, registered memory, opened drivers; what was done wrongly; the longest call, and their number.
void fake_cufile_left(size_t left[6]) {
    pthread_mutex_lock(&lock);
    memset(left, 0, 6 * sizeof *left);
    for (int i = 0; i < MOST; i++) {
        left[0] += files[i] != NULL && files[i]->alive;
        left[1] += buffers[i].base != 0;
    }
    left[2] = opened;
    left[3] = violations;
    left[4] = longest;
    left[5] = reads;
    pthread_mutex_unlock(&lock);
}

static CUfileError_t answer(int code) {
    CUfileError_t it;
    memset(&it, 0, sizeof it);
    it.err = code;
    return it;
}

static CUfileError_t leave(int code) {
    pthread_mutex_unlock(&lock);
    return answer(code);
}

static void wrong(const char *what) {
    fprintf(stderr, "fake_cufile: %s\n", what);
    violations++;
}

static void count(void) {
    static size_t direct;
    FILE *file = stats[0] ? fopen(stats, "w") : NULL;
    if (!file) return;
    fprintf(file, "IO stats: Enabled, peer IO stats: Enabled\nReads\t\t\t\t: n=%zu ok=%zu err=0 readMiB=0 io_state_err=0\n",
            direct, direct);
    direct++;
    fclose(file);
}

CUfileError_t cuFileDriverOpen(void) {
    CUfileError_t it = answer(open_answer);
    it.cu_err = open_cuda;
    if (open_answer) return it;
    if (!reach) fake_cufile_cuda("libcuda.so.1");
    if (!reach) return answer(CU_FILE_CUDA_DRIVER_ERROR);
    pthread_mutex_lock(&lock);
    opened++;
    if (module) count();
    return leave(CU_FILE_SUCCESS);
}

CUfileError_t cuFileDriverClose(void) {
    pthread_mutex_lock(&lock);
    if (!opened) wrong("closed without being open");
    else opened--;
    return leave(CU_FILE_SUCCESS);
}

CUfileError_t cuFileDriverGetProperties(CUfileDrvProps_t *properties) {
    if (properties_answer) return answer(properties_answer);
    memset(properties, 0, sizeof *properties);
    properties->nvfs.major_version = (unsigned int)module;
    properties->nvfs.max_direct_io_size = (size_t)most_kib;
    properties->nvfs.dstatusflags = (unsigned int)flags;
    properties->nvfs.dcontrolflags = compatible ? 1u << CU_FILE_ALLOW_COMPAT_MODE : 0;
    return answer(opened ? CU_FILE_SUCCESS : CU_FILE_DRIVER_NOT_INITIALIZED);
}

CUfileError_t cuFileGetVersion(int *it) {
    *it = version;
    return answer(CU_FILE_SUCCESS);
}

CUfileError_t cuFileHandleRegister(CUfileHandle_t *out, CUfileDescr_t *description) {
    pthread_mutex_lock(&lock);
    if (!opened) return leave(CU_FILE_DRIVER_NOT_INITIALIZED);
    if (description->type != CU_FILE_HANDLE_TYPE_OPAQUE_FD || description->fs_ops) return leave(CU_FILE_INVALID_VALUE);
    if (register_answer) return leave(register_answer);
    int fd = description->handle.fd, mode = fcntl(fd, F_GETFL);
    struct stat it;
    char again[64];
    if (mode < 0 || fstat(fd, &it) < 0) return leave(CU_FILE_INVALID_VALUE);
    if (!(mode & O_DIRECT)) return leave(CU_FILE_DIO_NOT_SET);
    if (!S_ISREG(it.st_mode)) return leave(CU_FILE_INVALID_FILE_TYPE);
    snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
    for (int i = 0; i < MOST; i++) {
        if (files[i]) continue;
        files[i] = calloc(1, sizeof *files[i]);
        *files[i] = (struct file){1, fd, open(again, O_RDONLY | O_CLOEXEC), it.st_dev, it.st_ino};
        *out = files[i];
        return leave(CU_FILE_SUCCESS);
    }
    return leave(CU_FILE_INTERNAL_ERROR);
}

void cuFileHandleDeregister(CUfileHandle_t handle) {
    struct file *file = handle;
    struct stat it;
    pthread_mutex_lock(&lock);
    if (!file || !file->alive) {
        wrong("a handle is given back twice");
    } else {
        if (fstat(file->fd, &it) < 0 || it.st_dev != file->device || it.st_ino != file->inode)
            wrong("a descriptor is closed before its handle is given back");
        close(file->plain);
        // Not freed: somebody may still name it.
        file->alive = 0;
    }
    pthread_mutex_unlock(&lock);
}

CUfileError_t cuFileBufRegister(const void *at, size_t bytes, int how) {
    char *there;
    pthread_mutex_lock(&lock);
    if (!opened) return leave(CU_FILE_DRIVER_NOT_INITIALIZED);
    if (bytes == 0 || how != 0) return leave(CU_FILE_INVALID_VALUE);
    if (reach((uintptr_t)at, bytes, &there)) return leave(CU_FILE_CUDA_POINTER_INVALID);
    int place = -1;
    for (int i = 0; i < MOST; i++) {
        if (!buffers[i].base) place = i;
        else if ((uintptr_t)at < buffers[i].base + buffers[i].bytes && buffers[i].base < (uintptr_t)at + bytes)
            return leave(CU_FILE_MEMORY_ALREADY_REGISTERED);
    }
    if (place < 0) return leave(CU_FILE_GPU_MEMORY_PINNING_FAILED);
    buffers[place].base = (uintptr_t)at;
    buffers[place].bytes = bytes;
    return leave(CU_FILE_SUCCESS);
}

CUfileError_t cuFileBufDeregister(const void *at) {
    char *there;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++) {
        if (buffers[i].base != (uintptr_t)at) continue;
        unsigned int cuda = reach((uintptr_t)at, buffers[i].bytes, &there);
        if (cuda == LOST) return leave(CU_FILE_CUDA_DRIVER_ERROR);
        if (cuda) wrong("memory is freed before it is given back");
        buffers[i].base = 0;
        return leave(CU_FILE_SUCCESS);
    }
    return leave(CU_FILE_MEMORY_NOT_REGISTERED);
}

static ssize_t fail(int code, int number) {
    pthread_mutex_unlock(&lock);
    errno = number;
    return code;
}

ssize_t cuFileRead(CUfileHandle_t handle, void *base, size_t bytes, off_t offset, off_t front) {
    struct file *file = handle;
    pthread_mutex_lock(&lock);
    uintptr_t first = (uintptr_t)base + (uintptr_t)front;
    size_t number = reads++;
    if (bytes > longest) longest = bytes;
    if (!opened) return fail(-CU_FILE_DRIVER_NOT_INITIALIZED, 0);
    if (!file || !file->alive) return fail(-CU_FILE_HANDLE_NOT_REGISTERED, 0);
    if (bytes == 0 || offset < 0 || front < 0) return fail(-CU_FILE_INVALID_VALUE, 0);
    if (number >= fail_after) return fail(fail_answer, fail_errno);
    for (int i = 0; i < MOST; i++) {
        if (!buffers[i].base || first < buffers[i].base || first >= buffers[i].base + buffers[i].bytes) continue;
        if ((uintptr_t)base != buffers[i].base) {
            wrong("registered memory is named by something inside of it");
            return fail(-CU_FILE_INVALID_VALUE, 0);
        }
    }
    char *there;
    unsigned int cuda = reach(first, bytes, &there);
    if (cuda) return fail(cuda == LOST ? -CU_FILE_CUDA_DRIVER_ERROR : -CU_FILE_CUDA_POINTER_INVALID, 0);
    if (module && goes_direct) count();
    else if (!compatible) return fail(-CU_FILE_IO_NOT_SUPPORTED, 0);
    ssize_t got = pread(file->plain, there, bytes < most_bytes ? bytes : most_bytes, offset);
    int number_of = errno;
    if (close_after) {
        char again[64];
        snprintf(again, sizeof again, "/proc/self/fd/%d", file->plain);
        if (truncate(again, close_after) < 0) wrong("the file cannot be shortened");
    }
    pthread_mutex_unlock(&lock);
    errno = number_of;
    return got;
}
