// What Forebay uses of cuFile, as C declares it: NVIDIA's headers where they are found.
#if __has_include(<cufile.h>) && __has_include(<cuda.h>)
#include <cufile.h>
#else
#include <stddef.h>
#include <sys/types.h>

typedef struct { int err; unsigned int cu_err; } CUfileError_t;
typedef struct {
    int type;
    union { int fd; void *handle; } handle;
    const void *fs_ops;
} CUfileDescr_t;
typedef struct {
    struct {
        unsigned int major_version, minor_version;
        size_t poll_thresh_size, max_direct_io_size;
        unsigned int dstatusflags, dcontrolflags;
    } nvfs;
    unsigned int fflags, max_device_cache_size, per_buffer_cache_size, max_device_pinned_mem_size;
    unsigned int max_batch_io_size, max_batch_io_timeout_msecs;
} CUfileDrvProps_t;
typedef void *CUfileHandle_t;
#define cuFileDriverClose cuFileDriverClose_v2

enum {
    CU_FILE_LUSTRE_SUPPORTED = 0, CU_FILE_NFS_SUPPORTED = 2, CU_FILE_NVME_SUPPORTED = 4, CU_FILE_NVMEOF_SUPPORTED = 5,
    CU_FILE_SCSI_SUPPORTED = 6, CU_FILE_NVME_P2P_SUPPORTED = 11,
    CU_FILE_ALLOW_COMPAT_MODE = 1,
    CU_FILE_HANDLE_TYPE_OPAQUE_FD = 1,
};

enum {
    CU_FILE_SUCCESS = 0,
    CU_FILE_DRIVER_NOT_INITIALIZED = 5001, CU_FILE_DRIVER_INVALID_PROPS, CU_FILE_DRIVER_UNSUPPORTED_LIMIT,
    CU_FILE_DRIVER_VERSION_MISMATCH, CU_FILE_DRIVER_VERSION_READ_ERROR, CU_FILE_DRIVER_CLOSING,
    CU_FILE_PLATFORM_NOT_SUPPORTED, CU_FILE_IO_NOT_SUPPORTED, CU_FILE_DEVICE_NOT_SUPPORTED, CU_FILE_NVFS_DRIVER_ERROR,
    CU_FILE_CUDA_DRIVER_ERROR, CU_FILE_CUDA_POINTER_INVALID, CU_FILE_CUDA_MEMORY_TYPE_INVALID,
    CU_FILE_CUDA_POINTER_RANGE_ERROR, CU_FILE_CUDA_CONTEXT_MISMATCH, CU_FILE_INVALID_MAPPING_SIZE,
    CU_FILE_INVALID_MAPPING_RANGE, CU_FILE_INVALID_FILE_TYPE, CU_FILE_INVALID_FILE_OPEN_FLAG, CU_FILE_DIO_NOT_SET,
    CU_FILE_INVALID_VALUE = 5022, CU_FILE_MEMORY_ALREADY_REGISTERED, CU_FILE_MEMORY_NOT_REGISTERED,
    CU_FILE_PERMISSION_DENIED, CU_FILE_DRIVER_ALREADY_OPEN, CU_FILE_HANDLE_NOT_REGISTERED,
    CU_FILE_HANDLE_ALREADY_REGISTERED, CU_FILE_DEVICE_NOT_FOUND, CU_FILE_INTERNAL_ERROR, CU_FILE_GETNEWFD_FAILED,
    CU_FILE_NVFS_SETUP_ERROR = 5033, CU_FILE_IO_DISABLED, CU_FILE_BATCH_SUBMIT_FAILED, CU_FILE_GPU_MEMORY_PINNING_FAILED,
};
#endif
