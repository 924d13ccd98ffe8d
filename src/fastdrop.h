/* fastdrop's C interface: dropout masks as values, on plain memory.
 *
 * No Python, no allocation and no threads in here: a caller cuts an `fd_walk` into ranges of units and runs them on as
 * many threads as he likes, with the same result for any cut.  Nor does anything depend on the floating-point environment:
 * masks are made of integers, and y is computed to nearest, subnormal numbers included, whatever the caller has set, which he
 * finds again.  Stack: 48 KiB at most. */
#ifndef FASTDROP_H
#define FASTDROP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum fd_dtype { FD_F32, FD_F64, FD_F16, FD_BF16, FD_DTYPES };
enum { FD_MAX_NDIM = 64, FD_INPUTS = 3 };

/* What is done to each element: FD_APPLY and the others of ops.def. */
enum fd_op {
#define FD_OPERATION(NAME, name, inputs, residual, value, size) FD_##NAME,
#include "ops.def"
    FD_OPS,
    FD_KEEP = FD_OPS  /* the decisions themselves, as bytes 0 and 1, whatever the dtype; no input */
};

const char *fd_op_name(enum fd_op op);  /* "apply" and so on */
int fd_op_inputs(enum fd_op op);

/* What decides: a stream of the generator, or bits that a user packed himself (`stored`, little bit order). */
typedef struct {
    uint64_t seed, stream, offset;  /* offset: index of the first element */
    const uint8_t *stored;          /* NULL: the generator */
} fd_source;

/* An op over arrays of any strides.  Fill in the upper part, call fd_plan. */
typedef struct {
    enum fd_op op;
    enum fd_dtype dtype;
    int ndim;
    fd_source mask;
    void *y;
    const void *in[FD_INPUTS];          /* NULL: the op has no such input */
    const double *p;                    /* probability to drop: one number, or an array by p_step */
    int64_t shape[FD_MAX_NDIM];
    int64_t y_step[FD_MAX_NDIM];        /* bytes */
    int64_t in_step[FD_INPUTS][FD_MAX_NDIM];
    int64_t m_step[FD_MAX_NDIM];        /* elements of the mask's stream; 0 along a shared axis */
    int64_t p_step[FD_MAX_NDIM];        /* elements of p; 0 where one p serves */

    /* set by fd_plan */
    int64_t units;                      /* pieces of work of about a tile, to be cut among threads */
    int64_t rows, tiles, rows_a_unit;
    uint64_t last;                      /* the highest index of the mask that is looked at */
    int ahead, bypass, packs, later;
    int far;                            /* x is near (0), in some cache (1) or in memory (2) */
    int crossed, column_axis, run_axis; /* runs cross the mask's order: axes of columns, then of runs, */
    int64_t columns, run;               /* and their lengths */
    int joined;                         /* where one run ends the next begins */
} fd_walk;

void fd_plan(fd_walk *walk);
void fd_run(const fd_walk *walk, int64_t first_unit, int64_t last_unit);

/* Packed bits of `n` elements from `mask.offset`: bit b of out[k] is element 8 * k + b; bits past n are 0. */
void fd_keep_bits(uint8_t *out, fd_source mask, double p, int64_t n);

/* The instruction set in use, which is the best from the first call on; those that this machine has (NULL-terminated, best
 * first); and another choice among them (0 on success). */
const char *fd_isa(void);
const char *const *fd_isa_found(void);
int fd_use_isa(const char *name);

#ifdef __cplusplus
}
#endif

#endif
