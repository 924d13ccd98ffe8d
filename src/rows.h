/* Kernels on rows: losses on logits with their gradients, softmax with dropout, norms.  A row is the last axis of an array.
 *
 * As in kernels.h a kernel is a pure function of its arguments.  A row never depends on another, so any cut of the rows
 * among threads gives the same bits.  Extra memory: what the jobs of fastdrop.h point to, and 40 KiB of stack. */
#ifndef FASTDROP_ROWS_H
#define FASTDROP_ROWS_H

#include "kernels.h"
#include "threads.h"

enum { FD_COLUMNS = 64 };  /* vectors of fd_max_norm that one unit is, where they lie side by side; else those of one `outer` */

void fd_exact_row(const fd_losses *k, int64_t row);  /* one row, in double: see rows_exact.c */

/* The units of a job: rows, sums of some rows, and so on. */
fd_work fd_losses_work(const fd_losses *job);
fd_work fd_softmax_work(const fd_softmax *job);
fd_work fd_row_sums_work(const fd_row_sums *job);  /* its parts; then */
fd_work fd_row_sums_total(const fd_row_sums *job);
fd_work fd_max_norm_work(const fd_max_norm *job);

/* What an instruction set exports for a dtype. */
typedef struct fd_row_kernels {
    void (*losses)(const fd_losses *k, int64_t first, int64_t end);

    /* The softmax of a row in steps, each on n elements of it, at most FD_TILE.  `weight`: floats (doubles for FD_F64), with
     * room for a vector more.  max: the largest score.  exp: weight = exp(score - shift), and their sum.  apply: y =
     * kept(weight * scale).  dot: the sum of weight * kept(dy * scale).  grad: dx = weight * (kept(dy * scale) - dot).  One
     * word of bits more than n / 64 is read.  `nontemporal` as in kernels.h. */
    double (*row_max)(const void *x, const void *bias, const uint8_t *allow, size_t n);
    double (*soft_exp)(void *weight, const void *x, const void *bias, const uint8_t *allow, size_t n, double shift);
    void (*soft_apply)(void *y, const void *weight, const uint64_t *bits, size_t n, double scale,
                                  int nontemporal);
    double (*soft_dot)(const void *dy, const void *weight, const uint64_t *bits, size_t n, double scale);
    void (*soft_grad)(void *dx, const void *dy, const void *weight, const uint64_t *bits, size_t n, double scale,
                                 double dot, int nontemporal);

    /* y = kept(x * scale), or nothing where y is NULL; sum += that.  Sums as `weight` above, bits and nontemporal as there. */
    void (*apply_sum)(void *y, const void *x, void *sum, const uint64_t *bits, size_t n, double scale, int nontemporal);

    void (*norm_row)(void *w, size_t n, double limit);
    void (*norm_columns)(void *w, size_t n, size_t step, size_t columns, double limit);  /* step: in elements */
} fd_row_kernels;

#endif
