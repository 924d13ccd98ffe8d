/* Kernels on rows: losses on logits with their gradients, softmax with dropout, norms.  A row is the last axis of an array.
 *
 * As in kernels.h a kernel is a pure function of its arguments.  A row never depends on another, so any cut of the rows
 * among threads gives the same bits.  Extra memory: the doubles that fd_losses points to, 16 bytes a row at most, and 40 KiB
 * of stack. */
#ifndef FASTDROP_ROWS_H
#define FASTDROP_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "fastdrop.h"

/* What losses.def says of each loss. */
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
    const char *a, *b;                   /* logits; classes lie consecutively, rows by steps in bytes */
    char *da, *db;                       /* gradients of weight * loss; may be a and b */
    int64_t a_step, b_step, da_step, db_step;
    const int64_t *label;                /* one class a row, or NULL and */
    const char *target;                  /* probabilities of a's dtype, rows by target_step */
    int64_t target_step;
    const uint8_t *skip;                 /* NULL, or 1 where a row is left out: no loss, gradient 0 */
    double inverse_temperature, weight, alpha, smoothing;
    double *loss;                        /* a row's loss; with labels the cross entropy alone */
    double *kl;                          /* two sides with labels: a row's divergence */
    int bypass;                          /* store gradients past the cache */
} fd_losses;

void fd_losses_run(const fd_losses *k, int64_t first, int64_t end);
void fd_exact_row(const fd_losses *k, int64_t row);  /* one row, in double: see rows_exact.c */

/* y = dropout(softmax(x + bias where allowed)) along rows, and back.  Row r is elements r * n .. r * n + n - 1 of the mask. */
typedef struct {
    enum fd_dtype dtype;
    int ndim;                            /* of the axes before the last */
    int64_t shape[FD_MAX_NDIM], n;
    const char *x;                       /* scores, C order */
    char *y;                             /* forward: the result; backward: dx */
    const char *dy;                      /* backward */
    const char *bias;                    /* NULL, or float (double for FD_F64) to add, */
    const char *allow;                   /* NULL, or bool: 0 where a score counts as -inf; rows of either by steps in bytes */
    int64_t bias_step[FD_MAX_NDIM], allow_step[FD_MAX_NDIM];
    double *log_sum;                     /* a row's log(sum(exp)): written by forward, read by backward; inf where all masked */
    fd_source mask;
    const double *p;                     /* probability to drop: one number, or one a row by p_step (elements) */
    int64_t p_step, rows;
    int bypass;                          /* store y past the cache */
} fd_softmax;

void fd_softmax_forward(const fd_softmax *k, int64_t first, int64_t end);
void fd_softmax_backward(const fd_softmax *k, int64_t first, int64_t end);

/* y = dropout(x), or nothing where y is NULL, and the sum of its rows first .. end - 1: the gradient of a bias. */
typedef struct {
    enum fd_dtype dtype;
    int64_t rows, n;
    const char *x;                       /* C order */
    char *y;
    fd_source mask;                      /* row r is its elements r * n .. r * n + n - 1 */
    double p;
    int bypass;
} fd_row_sums;

void fd_row_sums_run(const fd_row_sums *k, int64_t first, int64_t end, double *sum);

/* total = the sum of `parts` such sums, which lie one behind the other: n floats, doubles for FD_F64. */
void fd_row_sums_total(const fd_row_sums *k, void *total, const double *sums, int64_t parts);

/* Scale vectors of w whose Euclidean norm is above limit to that norm.  w is [outer, n, inner] in C order, a vector runs
 * along n; a unit is one `outer` where inner is 1, else FD_COLUMNS vectors or fewer. */
enum { FD_COLUMNS = 64 };
typedef struct {
    enum fd_dtype dtype;
    char *w;
    int64_t outer, n, inner;
    double limit;
} fd_max_norm;

int64_t fd_max_norm_units(const fd_max_norm *k);
void fd_max_norm_run(const fd_max_norm *k, int64_t first, int64_t end);

/* What an instruction set exports, by dtype. */
typedef struct fd_row_kernels {
    void (*losses[FD_DTYPES])(const fd_losses *k, int64_t first, int64_t end);

    /* The softmax of a row in steps, each on n elements of it, at most FD_TILE.  `weight`: floats (doubles for FD_F64), with
     * room for a vector more.  max: the largest score.  exp: weight = exp(score - shift), and their sum.  apply: y =
     * kept(weight * scale).  dot: the sum of weight * kept(dy * scale).  grad: dx = weight * (kept(dy * scale) - dot).  One
     * word of bits more than n / 64 is read.  `bypass` as in kernels.h. */
    double (*soft_max[FD_DTYPES])(const void *x, const void *bias, const uint8_t *allow, size_t n);
    double (*soft_exp[FD_DTYPES])(void *weight, const void *x, const void *bias, const uint8_t *allow, size_t n, double shift);
    void (*soft_apply[FD_DTYPES])(void *y, const void *weight, const uint64_t *bits, size_t n, double scale,
                                  int bypass);
    double (*soft_dot[FD_DTYPES])(const void *dy, const void *weight, const uint64_t *bits, size_t n, double scale);
    void (*soft_grad[FD_DTYPES])(void *dx, const void *dy, const void *weight, const uint64_t *bits, size_t n, double scale,
                                 double dot, int bypass);

    /* y = kept(x * scale), or nothing where y is NULL; sum += that.  Sums as `weight` above, bits and bypass as there. */
    void (*apply_sum[FD_DTYPES])(void *y, const void *x, void *sum, const uint64_t *bits, size_t n, double scale, int bypass);

    void (*norm_row[FD_DTYPES])(void *w, size_t n, double limit);
    void (*norm_columns[FD_DTYPES])(void *w, size_t n, size_t step, size_t columns, double limit);  /* step: in elements */
} fd_row_kernels;

#endif
