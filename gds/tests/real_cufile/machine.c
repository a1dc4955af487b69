// What NVIDIA's own libcufile reads of a machine and a container may lack: where /proc/modules or a block device's
// entry under /run/udev/data cannot be opened, a file of that kind is opened instead. Preloaded: see ci/cufile.
// The library reads /proc/modules for ever if there is none.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The name of the file to open instead, or NULL.
static const char *instead(const char *path) {
    static const char udev[] = "/run/udev/data/b";
    if (strcmp(path, "/proc/modules") == 0) return getenv("FOREBAY_FAKE_MODULES");
    return strncmp(path, udev, sizeof udev - 1) == 0 ? getenv("FOREBAY_FAKE_UDEV") : NULL;
}

#define OPENS(name)                                                                                \
    int name(const char *path, int flags, unsigned int mode) {                                     \
        int (*real)(const char *, int, unsigned int) =                                             \
            (int (*)(const char *, int, unsigned int))dlsym(RTLD_NEXT, #name);                     \
        int opened = real(path, flags, mode);                                                      \
        const char *other = opened < 0 ? instead(path) : NULL;                                     \
        return other ? real(other, flags, mode) : opened;                                          \
    }

#define OPENS_STREAM(name)                                                                         \
    FILE *name(const char *path, const char *how) {                                                \
        FILE *(*real)(const char *, const char *) =                                                \
            (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, #name);                      \
        FILE *opened = real(path, how);                                                            \
        const char *other = opened ? NULL : instead(path);                                         \
        return other ? real(other, how) : opened;                                                  \
    }

OPENS(open)
OPENS(open64)
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)
