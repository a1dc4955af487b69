// What NVIDIA's own libcufile calls of CUDA's driver to read in compatibility mode, beside what fake_cuda.c has:
// linked together with that, where these come first. See ci/cufile.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef unsigned long long CUdeviceptr;

enum {
    DEVICE = 40,
    INVALID_CONTEXT = 201,
    ATTRIBUTE_CAPABILITY_MAJOR = 75,
    ATTRIBUTE_PCI_DEVICE = 34,
    POINTER_CONTEXT = 1, POINTER_BUFFER = 7, POINTER_IS_MANAGED = 8, POINTER_RANGE_START = 11, POINTER_RANGE_SIZE = 12,
};

// Of fake_cuda.c, under other names where these here stand before them.
unsigned int fake_cuda_reach(CUdeviceptr at, size_t bytes, char **there);
CUresult fake_pointer_attribute(void *value, int what, CUdeviceptr at);
CUresult cuDevicePrimaryCtxRetain(void **context, int device);
CUresult cuDevicePrimaryCtxRelease_v2(int device);
CUresult cuCtxPushCurrent_v2(void *context);
CUresult cuCtxPopCurrent_v2(void **context);
CUresult cuStreamCreate(void **stream, unsigned int flags);

static void *context(void) {
    void *it = NULL;
    cuDevicePrimaryCtxRetain(&it, DEVICE);
    cuDevicePrimaryCtxRelease_v2(DEVICE);
    return it;
}

CUresult cuDriverGetVersion(int *version) {
    *version = 12090;
    return 0;
}

CUresult cuDeviceGetAttribute(int *value, int what, int device) {
    *value = what == ATTRIBUTE_CAPABILITY_MAJOR ? 9 : what == ATTRIBUTE_PCI_DEVICE ? 5 : 0;
    return device == DEVICE ? 0 : 1;
}

CUresult cuDeviceGetUuid_v2(unsigned char uuid[16], int device) {
    memset(uuid, 1, 16);
    return device == DEVICE ? 0 : 1;
}

CUresult cuDeviceGetUuid(unsigned char uuid[16], int device) {
    return cuDeviceGetUuid_v2(uuid, device);
}

CUresult cuDeviceGetPCIBusId(char *name, int length, int device) {
    snprintf(name, (size_t)length, "0000:00:05.0");
    return device == DEVICE ? 0 : 1;
}

CUresult cuCtxCreate_v2(void **out, unsigned int flags, int device) {
    (void)flags;
    *out = context();
    return device == DEVICE ? cuCtxPushCurrent_v2(*out) : 1;
}

CUresult cuCtxDestroy_v2(void *it) {
    return cuCtxPopCurrent_v2(&it);
}

// None where the caller has made none its own.
CUresult cuCtxGetCurrent(void **out) {
    char *there;
    *out = fake_cuda_reach(0, 0, &there) == INVALID_CONTEXT ? NULL : context();
    return 0;
}

CUresult cuCtxSetCurrent(void *it) {
    return it ? cuCtxPushCurrent_v2(it) : 0;
}

CUresult cuCtxGetDevice(int *device) {
    *device = DEVICE;
    return 0;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return 0;
}

CUresult cuStreamCreateWithPriority(void **stream, unsigned int flags, int priority) {
    (void)flags, (void)priority;
    return cuStreamCreate(stream, 1);
}

CUresult cuStreamSynchronize(void *stream) {
    (void)stream;
    return 0;
}

CUresult cuPointerGetAttribute(void *value, int what, CUdeviceptr at) {
    char *there;
    unsigned int outside = fake_cuda_reach(at, 1, &there);
    if (outside) return (CUresult)outside;
    switch (what) {
    case POINTER_CONTEXT: *(void **)value = context(); return 0;
    case POINTER_BUFFER: *(unsigned long long *)value = 1; return 0;
    case POINTER_IS_MANAGED: *(unsigned int *)value = 0; return 0;
    default: return fake_pointer_attribute(value, what, at);
    }
}

CUresult cuPointerSetAttribute(const void *value, int what, CUdeviceptr at) {
    (void)value, (void)what, (void)at;
    return 0;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr at) {
    CUresult answer = base ? fake_pointer_attribute(base, POINTER_RANGE_START, at) : 0;
    return answer ? answer : bytes ? fake_pointer_attribute(bytes, POINTER_RANGE_SIZE, at) : 0;
}

CUresult cuMemHostRegister_v2(void *at, size_t bytes, unsigned int flags) {
    (void)at, (void)bytes, (void)flags;
    return 0;
}

CUresult cuMemHostUnregister(void *at) {
    (void)at;
    return 0;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    char *there;
    unsigned int outside = fake_cuda_reach(to, bytes, &there);
    if (!outside) memcpy(there, from, bytes);
    return (CUresult)outside;
}
