/* Runs of a mask's stream, from the blocks that the generator makes: see bits.h. */
#include "bits.h"

#include "dispatch.h"
#include "threads.h"

void fd_bits_open(fd_bits *bits, fd_source mask, uint64_t last, int ahead)
{
    bits->mask = mask;
    bits->last = last;
    bits->ahead = ahead;
    bits->now = 0;
    bits->pending = (fd_pending){0};
    bits->window[0].first = bits->window[0].count = 0;
}

static void shift_bits(uint64_t *out, const uint64_t *words, unsigned shift, size_t n)
{
    for (size_t i = 0; i < (n + 63) / 64; i++)
        out[i] = words[i] >> shift | words[i + 1] << (64 - shift);
}

static void stored_bits(uint64_t *out, const uint8_t *stored, uint64_t index, size_t n)
{
    const unsigned shift = index % 8;
    const uint8_t *byte = stored + index / 8;
    size_t i = 0;
    for (; i + 64 <= n; i += 64, byte += 8) {
        uint64_t word;
        memcpy(&word, byte, 8);
        out[i / 64] = shift ? word >> shift | (uint64_t)byte[8] << (64 - shift) : word;
    }
    if (i == n)
        return;
    uint64_t word = 0;
    for (size_t bit = 0, end = n - i + shift; bit < end; bit += 8)  /* never past the last byte */
        word |= bit < 64 ? (uint64_t)byte[bit / 8] << bit >> shift : (uint64_t)byte[8] << (64 - shift);
    out[i / 64] = word;
}

static int all_alike(uint64_t threshold)  /* all dropped or all kept: the generator has no say */
{
    return threshold == 0 || threshold >> 32;
}

const uint64_t *fd_bits_at(fd_bits *bits, uint64_t index, size_t n, uint64_t threshold, fd_prefetch x)
{
    enum { TILE_BLOCKS = FD_TILE / FD_BLOCK };
    const fd_source *mask = &bits->mask;
    fd_window *w = &bits->window[bits->now];
    if (mask->stored) {
        fd_bits_finish(bits);
        stored_bits(w->shifted, mask->stored, index, n);
        return w->shifted;
    }
    if (all_alike(threshold)) {
        fd_bits_finish(bits);
        memset(w->shifted, threshold ? 255 : 0, ((n + 63) / 64 + 1) * 8);
        return w->shifted;
    }
    uint64_t at = index - w->first;
    if (at >= w->count || n > w->count - at || w->threshold != threshold) {
        const uint64_t block = index / FD_BLOCK, left = bits->last / FD_BLOCK - block + 1;
        uint64_t blocks = (index % FD_BLOCK + n + FD_BLOCK - 1) / FD_BLOCK;
        if (bits->ahead && blocks < TILE_BLOCKS)
            blocks = left < TILE_BLOCKS ? left : TILE_BLOCKS;
        bits->now ^= 1;
        w = &bits->window[bits->now];
        fd_kernels_in_use()->keep_blocks(w->words, blocks, block, mask->seed, mask->stream, threshold, x, &bits->pending);
        w->first = block * FD_BLOCK;
        w->count = blocks * FD_BLOCK;
        w->threshold = threshold;
        at = index - w->first;
    }
    fd_bits_finish(bits);
    if (at % 64 == 0)
        return w->words + at / 64;
    shift_bits(w->shifted, w->words + at / 64, at % 64, n);
    return w->shifted;
}

void fd_bits_copy(uint64_t *out, fd_bits *bits, uint64_t index, size_t n, uint64_t threshold, fd_prefetch x)
{
    const fd_source *mask = &bits->mask;
    const int whole = n == FD_TILE && index % FD_BLOCK == 0 && index >> 36 == (index + FD_TILE - 1) >> 36;
    if (whole && !mask->stored && !all_alike(threshold))  /* no block beyond the tile is made: straight to its place */
        fd_kernels_in_use()->keep_blocks(out, FD_TILE / FD_BLOCK, index / FD_BLOCK, mask->seed, mask->stream, threshold, x, &bits->pending);
    else
        memcpy(out, fd_bits_at(bits, index, n, threshold, x), (n + 63) / 64 * 8);
}

size_t fd_kept_at(uint16_t kept[FD_TILE], fd_bits *bits, uint64_t index, size_t n, uint64_t threshold)
{
    const uint64_t *words = fd_bits_at(bits, index, n, threshold, (fd_prefetch){0});
    size_t count = 0;
    for (size_t i = 0; i < n; i += 64) {
        const uint64_t valid = n - i < 64 ? (UINT64_C(1) << (n - i)) - 1 : UINT64_MAX;
        count += fd_places_of_ones(kept + count, words[i / 64] & valid, (uint16_t)i);
    }
    return count;
}

void fd_uniforms(uint32_t *out, const fd_source *mask, uint64_t index, size_t n)
{
    while (n) {
        const size_t from = index % FD_BLOCK, part = n < FD_BLOCK - from ? n : FD_BLOCK - from;
        uint32_t block[FD_BLOCK];
        if (part < FD_BLOCK) {
            fd_kernels_in_use()->uniform_blocks(block, 1, index / FD_BLOCK, mask->seed, mask->stream);
            memcpy(out, block + from, part * sizeof *out);
            out += part, index += part, n -= part;
        } else {
            const size_t blocks = n / FD_BLOCK;
            fd_kernels_in_use()->uniform_blocks(out, blocks, index / FD_BLOCK, mask->seed, mask->stream);
            out += blocks * FD_BLOCK, index += blocks * FD_BLOCK, n -= blocks * FD_BLOCK;
        }
    }
}

typedef struct {
    fd_source mask;
    uint8_t *out;
    uint64_t threshold;
    int64_t n;
} packed_job;

static void pack_tiles(const void *job, int64_t tile, int64_t end)
{
    const packed_job *k = job;
    fd_bits bits;
    fd_bits_open(&bits, k->mask, k->mask.offset + (uint64_t)(k->n - 1), 0);
    for (int64_t i = tile * FD_TILE; i < end * FD_TILE && i < k->n; i += FD_TILE) {
        const size_t n = k->n - i < FD_TILE ? (size_t)(k->n - i) : FD_TILE, bytes = (n + 7) / 8;
        memcpy(k->out + i / 8, fd_bits_at(&bits, k->mask.offset + (uint64_t)i, n, k->threshold, (fd_prefetch){0}), bytes);
        if (n % 8)
            k->out[i / 8 + (int64_t)bytes - 1] &= (uint8_t)((1 << n % 8) - 1);
    }
}

void fd_keep_bits(uint8_t *out, fd_source mask, double p, int64_t n, int threads)
{
    const packed_job job = {mask, out, fd_threshold(p), n};
    const fd_work work = {pack_tiles, &job, (n + FD_TILE - 1) / FD_TILE, 0};
    fd_share(&work, n >= FD_SERIAL ? threads : 1);
}
