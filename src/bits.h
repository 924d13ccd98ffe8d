/* What a mask says of a run of elements: its keep bits, from any offset of the stream; which of them are kept; and the 32-bit
 * uniforms behind the decisions.  Walks, rows and samples all ask here.
 *
 * The generator makes whole blocks of 256 elements.  A reader of bits keeps the blocks that it has made, a tile at a time, and
 * shifts from them what is asked for: runs that follow one another in the stream cost no more than one long run. */
#ifndef FASTDROP_BITS_H
#define FASTDROP_BITS_H

#include "kernels.h"
#include "stream.h"

typedef struct {
    uint64_t first, count, threshold;                  /* words hold `count` bits from index `first` */
    uint64_t words[(FD_TILE / FD_BLOCK + 2) * 4 + 1];  /* 17 blocks cover a tile from anywhere; they are made in pairs */
    uint64_t shifted[FD_TILE / 64 + 1];                /* kernels read one word more than they use */
} fd_window;

/* Two windows: the last run of one may still be pending while the next one is made. */
typedef struct {
    fd_source mask;
    uint64_t last;  /* the highest index that will be asked for: none beyond its block is made */
    int ahead;      /* make a tile where less is asked for, since the next run lies close behind */
    int now;
    fd_pending pending;
    fd_window window[2];
} fd_bits;

void fd_bits_open(fd_bits *bits, fd_source mask, uint64_t last, int ahead);

/* The bits of elements index .. index + n - 1, n <= FD_TILE, from bit 0 on; valid until the window after the next is made.  What is
 * pending is done meanwhile; `x` is fetched. */
const uint64_t *fd_bits_at(fd_bits *bits, uint64_t index, size_t n, uint64_t threshold, fd_prefetch x);

/* The same, copied to `out`, which is FD_TILE / 64 words long.  Of what is pending only a part may be done. */
void fd_bits_copy(uint64_t *out, fd_bits *bits, uint64_t index, size_t n, uint64_t threshold, fd_prefetch x);

/* Does what is still pending. */
static inline void fd_bits_finish(fd_bits *bits)
{
    fd_advance_pending(&bits->pending, SIZE_MAX / 2);
}

/* The bit of one element. */
static inline int fd_bit_at(const fd_source *mask, uint64_t index, uint64_t threshold)
{
    return mask->stored ? mask->stored[index / 8] >> (index % 8) & 1 : fd_keep(mask->seed, mask->stream, index, threshold);
}

/* The places of the kept among n <= FD_TILE elements, ascending, and how many they are: kept[k] counts from `index`. */
size_t fd_kept_at(uint16_t kept[FD_TILE], fd_bits *bits, uint64_t index, size_t n, uint64_t threshold);

/* U(index) .. U(index + n - 1) of stream.h; not of stored bits. */
void fd_uniforms(uint32_t *out, const fd_source *mask, uint64_t index, size_t n);

#endif
