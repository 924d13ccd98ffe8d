/* Several masks on one array: see fd_samples in fastdrop.h.
 *
 * With one p the count of kept samples is held in bit-sliced counters: plane b holds bit b of every element's count, so S masks
 * cost the float pass only log2(S + 1) additions, of 1, 2, 4, ...: the same kernel as p per sample, whose planes are
 * the masks and whose weights are the scales. */
#ifndef FASTDROP_SAMPLES_H
#define FASTDROP_SAMPLES_H

#include "kernels.h"
#include "threads.h"

fd_work fd_samples_work(const fd_samples *job);

/* What an instruction set has for it. `planes` planes of FD_TILE bits each; weights are floats, doubles for FD_F64. */
typedef struct fd_sample_kernels {
    /* As an op that may be pending: in[0] is x, in[1] the weights, in[2] the number of planes (a size_t), number[0] the factor. */
    fd_op_kernel mean;

    void (*sum)(void *y, const void *x, int64_t x_step, const uint64_t *bits, size_t planes, const void *weights, size_t n);
} fd_sample_kernels;

#endif
