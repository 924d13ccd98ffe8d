/* fastdrop's C interface: dropout masks as values, on plain memory.
 *
 * A caller fills in a job and runs it: fd_run_NAME(&job, threads) works on the calling thread and on at most threads - 1
 * others, with the same result for any number.  No Python and no allocation: memory that a job needs comes with it.  Nor does
 * anything depend on the floating-point environment: masks are made of integers, and results are computed to nearest,
 * subnormal numbers included, whatever the caller has set, which he finds again.  Stack: 48 KiB at most.
 *
 * Nothing is checked.  Every array is aligned to its elements and in native byte order; steps are in bytes unless said
 * otherwise, and of either sign.  `nontemporal` asks for stores past the cache, which pay where results take FD_NONTEMPORAL bytes
 * or more and no input is written over. */
#ifndef FASTDROP_H
#define FASTDROP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* FD_F32 and the others of dtypes.def. */
enum fd_dtype {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) FD_##NAME,
#include "dtypes.def"
    FD_DTYPES
};
enum {
    FD_MAX_NDIM = 64,
    FD_INPUTS = 3,
    FD_SERIAL = 1 << 18,        /* elements below which to wake a thread costs more than it gains */
    FD_NONTEMPORAL = 8 << 20,   /* bytes that no cache is likely to hold */
};

/* What is done to each element: FD_APPLY and the others of ops.def. */
enum fd_op {
#define FD_OPERATION(NAME, name, inputs, residual, value, size) FD_##NAME,
#include "ops.def"
    FD_OPS,
    FD_KEEP = FD_OPS,  /* the decisions themselves, as bytes 0 and 1, whatever the dtype; no input */
    FD_UNIFORM         /* the uniforms behind them, as 32-bit integers, likewise; not of stored bits */
};

const char *fd_dtype_name(enum fd_dtype dtype);  /* NumPy's: "float32" and so on */
const char *fd_op_name(enum fd_op op);  /* "apply" and so on */
int fd_op_inputs(enum fd_op op);

/* What decides: a stream of the generator, or bits that a user packed himself (`stored`, little bit order). */
typedef struct {
    uint64_t seed, stream, offset;  /* offset: index of the first element */
    const uint8_t *stored;          /* NULL: the generator */
} fd_source;

/* An op over arrays of any strides: the length of each axis, and the step along it of each array. */
typedef struct {
    int64_t n;
    int64_t y, in[FD_INPUTS];
    int64_t mask;                       /* elements of the mask's stream; 0 along a shared axis */
    int64_t p;                          /* elements of p; 0 where one p serves */
} fd_axis;

typedef struct {
    enum fd_op op;
    enum fd_dtype dtype;
    fd_source mask;
    void *y;
    const void *in[FD_INPUTS];          /* NULL: the op has no such input; y may be one of them */
    const double *p;                    /* probability to drop: one number, or an array by the axes' steps */
    int ndim;
    fd_axis axis[FD_MAX_NDIM];
} fd_elementwise;

void fd_run_elementwise(const fd_elementwise *job, int threads);

/* Packed bits of `n` elements from `mask.offset`: bit b of out[k] is element 8 * k + b; bits past n are 0. */
void fd_keep_bits(uint8_t *out, fd_source mask, double p, int64_t n, int threads);

/* Losses of rows of logits and their gradients, and what losses.def says of each. */
enum fd_loss {
#define FD_LOSS(NAME, name, sides, labels, forward, reverse, middle) FD_##NAME,
#include "losses.def"
    FD_LOSSES
};

typedef struct {
    const char *name;
    int sides, labels;
    double forward, reverse, middle;
} fd_loss_facts;

extern const fd_loss_facts fd_loss_table[FD_LOSSES];

typedef struct {
    enum fd_dtype dtype;
    enum fd_loss op;
    int64_t rows, n;                     /* n classes, at least 1 */
    const char *a, *b;                   /* logits; the classes of a row lie consecutively */
    char *da, *db;                       /* gradients of weight * loss; may be a and b */
    int64_t a_step, b_step, da_step, db_step;
    const int64_t *label;                /* one class a row, or NULL and */
    const char *target;                  /* probabilities of a's dtype, rows by target_step */
    int64_t target_step;
    const uint8_t *skip;                 /* NULL, or 1 where a row is left out: no loss, gradient 0 */
    double inv_temperature, weight, alpha, smoothing;
    double *loss;                        /* a row's loss; with labels the cross entropy alone */
    double *kl;                          /* two sides with labels: a row's divergence */
    int nontemporal;                          /* nontemporal gradients */
} fd_losses;

void fd_run_losses(const fd_losses *job, int threads);

/* y = dropout(softmax(x + bias where allowed)) along rows, and back.  Row r is elements r * n .. r * n + n - 1 of the mask. */
typedef struct {
    enum fd_dtype dtype;
    int ndim;                            /* of the axes before the last */
    int64_t shape[FD_MAX_NDIM], n;
    const char *x;                       /* scores, C order */
    char *y;                             /* forward: the result; backward: dx */
    const char *dy;                      /* NULL: forward */
    const char *bias;                    /* NULL, or float (double for FD_F64) to add, */
    const char *allow;                   /* NULL, or bool: 0 where a score counts as -inf; of both the last axis is consecutive */
    int64_t bias_step[FD_MAX_NDIM], allow_step[FD_MAX_NDIM];
    double *logsumexp;                   /* of a row: written by forward, read by backward; inf where all is masked */
    fd_source mask;
    const double *p;                     /* probability to drop: one number, or one a row by p_step (elements) */
    int64_t p_step, rows;
    int nontemporal;
} fd_softmax;

void fd_run_softmax(const fd_softmax *job, int threads);

/* y = dropout(x), or nothing where y is NULL, and the sum of its rows: the gradient of a bias. */
typedef struct {
    enum fd_dtype dtype;
    int64_t rows, n;                     /* n at least 1 */
    const char *x;                       /* C order */
    char *y;
    void *total;                         /* n floats, doubles for FD_F64 */
    fd_source mask;                      /* row r is its elements r * n .. r * n + n - 1 */
    double p;
    double *scratch;                     /* n times fd_row_sums_parts doubles */
    int nontemporal;
} fd_row_sums;

int64_t fd_row_sums_parts(int64_t rows, int64_t n);
void fd_run_row_sums(const fd_row_sums *job, int threads);

/* Scale vectors of w whose Euclidean norm is above limit to that norm.  w is [outer, n, inner] in C order, a vector runs along n. */
typedef struct {
    enum fd_dtype dtype;
    char *w;
    int64_t outer, n, inner;
    double limit;
} fd_max_norm;

void fd_run_max_norm(const fd_max_norm *job, int threads);

/* Several masks on one array at once: sample s of S is a mask of its own, and nothing of S times the array's size is made.
 *
 *   mean   y = the mean over s of x dropped by mask s        (multi-sample dropout averaged; its backward, on dy)
 *   sum    y = the sum over s of x[s] dropped by mask s      (the backward of S dropped copies)
 *
 * To the bit, in float32 (float64 for float64), k_s being the decision of mask s and T "rounded to that type":
 *
 *   one p         y = x * (count of k_s * T(1 / (1-p) / S))
 *   p per sample  y = x * ((T(scale_0) if k_0 + T(scale_1) if k_1 + ...) * T(1 / S)), added in the order of s
 *                 and y = +0.0 where no k_s is 1, by selection: a NaN dropped by every mask is 0
 *   sum           y = x[0] * T(scale_0) if k_0 + x[1] * T(scale_1) if k_1 + ..., else +0.0, added in the order of s
 *
 * and float16, bfloat16 are rounded once, at the end. */
typedef struct {
    enum fd_dtype dtype;
    int mean;                           /* else the sum */
    fd_source mask;
    void *y;                            /* `rows` rows of `n` consecutive elements, as of x; the mean may be made in place */
    const void *x;
    const double *p;                    /* one, or one a sample by p_step (0 or 1) */
    int64_t samples, rows, n;           /* samples at least 1 */
    int64_t y_row, x_row, m_row;        /* m_: elements of the mask's stream */
    int64_t x_sample, m_sample, p_step; /* x_sample: of the sum alone */
    int64_t parts;                      /* pieces of the work, as many as threads may work on it: fd_samples_parts */
    void *scratch;                      /* fd_samples_scratch bytes for each part, on a cache line */
} fd_samples;

int64_t fd_samples_parts(const fd_samples *job, int threads);
size_t fd_samples_scratch(const fd_samples *job);
void fd_run_samples(const fd_samples *job, int threads);

/* The instruction set in use, which is the best from the first call on; those that this machine has (NULL-terminated, best
 * first); and another choice among them (0 on success). */
const char *fd_isa(void);
const char *const *fd_isa_found(void);
int fd_use_isa(const char *name);

#ifdef __cplusplus
}
#endif

#endif
