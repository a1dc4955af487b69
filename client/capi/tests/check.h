/* What the tests in C check, and how. */
#ifndef FOREBAY_CHECK_H
#define FOREBAY_CHECK_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "forebay.h"

/* What programs were compiled with. */
typedef char options_have_their_size[sizeof(forebay_options) == 56 ? 1 : -1];
typedef char requests_have_their_size[sizeof(forebay_sqe) == 64 ? 1 : -1];
typedef char completions_have_their_size[sizeof(forebay_cqe) == 32 ? 1 : -1];
typedef char caps_have_their_size[sizeof(forebay_caps) == 64 ? 1 : -1];
typedef char user_data_is_in_place[offsetof(forebay_sqe, user_data) == 40 ? 1 : -1];
typedef char result_is_in_place[offsetof(forebay_cqe, result) == 8 ? 1 : -1];

#define CHECK(condition)                                                                               \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition,                \
                    forebay_last_error());                                                             \
            exit(1);                                                                                   \
        }                                                                                              \
    } while (0)

#define REFUSED(kind, call) CHECK((call) == -(kind) && forebay_last_error()[0] != '\0')

#endif
