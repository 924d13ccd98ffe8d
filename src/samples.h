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
 * and float16, bfloat16 are rounded once, at the end.
 *
 * With one p the count is kept in bit-sliced counters: plane b holds bit b of every element's count, so S masks
 * cost the float pass only log2(S + 1) additions, of 1, 2, 4, ...: the same kernel as p per sample, whose planes are
 * the masks and whose weights are the scales. */
#ifndef FASTDROP_SAMPLES_H
#define FASTDROP_SAMPLES_H

#include "kernels.h"

/* `rows` rows of `n` consecutive elements. Steps are in bytes, of the mask in elements of its stream. */
typedef struct {
    enum fd_dtype dtype;
    fd_source mask;
    void *y;
    const void *x;
    const double *p;                    /* one, or one a sample by p_step (0 or 1) */
    int64_t samples, rows, n;
    int64_t y_row, x_row, m_row;
    int64_t x_sample, m_sample, p_step; /* x_sample: of sum alone */
} fd_samples;

int64_t fd_samples_units(const fd_samples *samples);
size_t fd_samples_scratch(const fd_samples *samples, int mean);  /* bytes that one thread needs, to be 8-aligned */
void fd_samples_mean(const fd_samples *samples, int64_t first_unit, int64_t last_unit, void *scratch);
void fd_samples_sum(const fd_samples *samples, int64_t first_unit, int64_t last_unit, void *scratch);

/* What an instruction set has for it. `planes` planes of FD_TILE bits each; weights are floats, doubles for FD_F64. */
typedef struct fd_sample_kernels {
    /* count += bit, in every element: binary numbers of `planes` digits, lowest plane first. */
    void (*count)(uint64_t *count, size_t planes, const uint64_t *bits);

    /* As an op that may be pending: in[0] is x, in[1] the weights, in[2] the number of planes (a size_t), scale the factor. */
    fd_elementwise mean[FD_DTYPES];

    void (*sum[FD_DTYPES])(void *y, const void *x, int64_t x_step, const uint64_t *bits, size_t planes, const void *weights,
                           size_t n);
} fd_sample_kernels;

#endif
