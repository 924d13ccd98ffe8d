/* The table of kernels that each instruction set exports, and the choice among them.
 * A kernel is a pure function of its arguments: no state, no allocation, no threads, no Python. */
#ifndef FASTDROP_KERNELS_H
#define FASTDROP_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fastdrop.h"

static inline int64_t fd_item_size(enum fd_dtype dtype)
{
    static const int64_t bytes[FD_DTYPES] = {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) [FD_##NAME] = sizeof(T),
#include "dtypes.def"
    };
    return bytes[dtype];
}

enum {
    FD_TILE = 4096,  /* elements whose bits are made at a time: 512 bytes of bits, 16 KiB of float32 */
    FD_NUMBERS = 2,
};

struct fd_row_kernels;     /* rows.h */
struct fd_sample_kernels;  /* samples.h */

/* An op on n consecutive elements; y may be an input.  What is drawn for y[i] is bit i of bits, of which one word more than
 * n / 64 is read, or, of ops that take numbers instead of decisions, uniforms[i].  `nontemporal`: store past the cache; the
 * caller fences.  Call it on consecutive ranges [0, a), [a, b), ..., with a, b, ...
 * multiples of 64; together they must cover [0, n). */
typedef struct {
    void *y;
    const void *in[FD_INPUTS];
    const uint64_t *bits;
    const uint32_t *uniforms;
    size_t n;
    double number[FD_NUMBERS];  /* the scale, and what else an op may take */
    int nontemporal;
} fd_run_of_op;
typedef void (*fd_op_kernel)(const fd_run_of_op *run, size_t from, size_t to);

/* What to prefetch: `bytes` from `start`, into the second cache where it comes from `memory`, since the few fetches that the
 * first can have under way are not enough for that distance. */
typedef struct {
    const void *start;
    size_t bytes;
    int memory;
} fd_prefetch;

/* A run still to be done, or as far as it is done. */
typedef struct {
    fd_op_kernel op;  /* NULL: none */
    fd_run_of_op run;
    size_t done;
    unsigned slower;  /* by this power of 2, where several windows are made meanwhile */
} fd_pending;

static inline void fd_advance_pending(fd_pending *pending, size_t n)
{
    if (pending->op) {
        n >>= pending->slower;
        n = n < 64 ? 64 : n;
        pending->op(&pending->run, pending->done, pending->done + n);
        pending->done += n;
        if (pending->done >= pending->run.n)
            pending->op = NULL;
    }
}

typedef struct fd_kernels {
    const char *isa;

    /* The keep bits of `blocks` blocks of 256 elements, from block number `first`; bit b of words[w] is element
     * first * 256 + 64 * w + b.  One block more may be written; none where `blocks` is even and no multiple of 2**28
     * lies among their numbers.  0 < threshold < 2**32.  Meanwhile `wanted` is fetched, and as much of what is pending is done
     * as there are elements: the generator multiplies, ops load and store, and a processor that sees both at once does one
     * in the gaps of the other. */
    void (*keep_blocks)(uint64_t *words, size_t blocks, uint64_t first, uint64_t seed, uint64_t stream, uint64_t threshold,
                        fd_prefetch wanted, fd_pending *pending);

    /* The uniforms of `blocks` blocks from block number `first`. */
    void (*uniform_blocks)(uint32_t *out, size_t blocks, uint64_t first, uint64_t seed, uint64_t stream);

    const fd_op_kernel *op[FD_DTYPES];  /* of each, FD_OPS */

    /* y[i] = bit i of bits */
    void (*keep)(uint8_t *y, const uint64_t *bits, size_t n);

    /* count += bit, in each element of a tile: binary numbers of `planes` digits, lowest plane first. */
    void (*count)(uint64_t *count, size_t planes, const uint64_t *bits);

    const struct fd_row_kernels *rows[FD_DTYPES];        /* losses, softmax, norms */
    const struct fd_sample_kernels *samples[FD_DTYPES];  /* several masks at once */
} fd_kernels;

/* The places of the 1 bits of a word, ascending, counted from `first`; and how many they are. */
static inline size_t fd_places_of_ones(uint16_t *place, uint64_t word, uint16_t first)
{
    size_t n = 0;
    for (; word; word &= word - 1)
        place[n++] = (uint16_t)(first + __builtin_ctzll(word));
    return n;
}

extern const fd_kernels fd_kernels_scalar, fd_kernels_avx2, fd_kernels_avx512, fd_kernels_neon;

#endif
