/* The walk of samples.h: tiles of the array, and for each the bits of every sample, made and used in cache. */
#include "samples.h"

#include <string.h>

#include "bits.h"
#include "dispatch.h"
#include "environment.h"

enum {
    PLANE = FD_TILE / 64,  /* words of a tile's bits */
    BYPASS_BYTES = 8 << 20,
};

static int64_t item(const fd_samples *k)
{
    return k->dtype == FD_F64 ? 8 : k->dtype == FD_F32 ? 4 : 2;
}

static int64_t tiles(const fd_samples *k)
{
    return (k->n + FD_TILE - 1) / FD_TILE;
}

int64_t fd_samples_units(const fd_samples *k)
{
    return k->rows * tiles(k);
}

/* With one p the planes are the digits of a count, else the samples. */
static size_t planes_of(const fd_samples *k, int mean)
{
    size_t digits = 0;
    while (k->samples >> digits)
        digits++;
    return mean && k->p_step == 0 ? digits : (size_t)k->samples;
}

/* A weight and a plane of bits for each; of the mean twice, since one tile waits while the next one's are made, and one
 * plane to count from. */
size_t fd_samples_scratch(const fd_samples *k, int mean)
{
    const size_t planes = planes_of(k, mean);
    return planes * 8 + (mean ? 2 * planes + 1 : planes) * PLANE * 8;
}

/* A sample's bits of n elements from `at`. Also prefetches x and advances what is pending. */
static void sample_bits(uint64_t *out, fd_bits *bits, const fd_samples *k, int64_t sample, uint64_t at, int64_t n, fd_prefetch x)
{
    const uint64_t index = k->mask.offset + at + (uint64_t)sample * (uint64_t)k->m_sample;
    fd_bits_copy(out, bits, index, (size_t)n, fd_threshold(k->p[sample * k->p_step]), x);
}

static void set_weight(const fd_samples *k, void *weights, size_t i, double weight)
{
    if (k->dtype == FD_F64)
        ((double *)weights)[i] = weight;
    else
        ((float *)weights)[i] = (float)weight;
}

typedef struct {
    int64_t row, from, n;
    uint64_t m;
} piece;

static piece piece_of(const fd_samples *k, int64_t unit)
{
    int64_t row = unit / tiles(k), from = unit % tiles(k) * FD_TILE, rest = k->n - from;
    return (piece){row, from, rest < FD_TILE ? rest : FD_TILE, (uint64_t)row * (uint64_t)k->m_row + (uint64_t)from};
}

/* The floats of a tile are done while the bits of the next one are made (see keep_blocks in kernels.h), and fetched while its
 * own are: a share of either for each sample, since memory keeps up with no more. */
static FD_APART void samples_mean(const fd_samples *k, int64_t unit, int64_t end, void *scratch)
{
    const fd_sample_kernels *kernels = fd_kernels_in_use()->samples;
    const int bypass = k->y != k->x && k->rows * k->n * item(k) >= BYPASS_BYTES, counted = k->p_step == 0;
    const size_t planes = planes_of(k, 1), share = (size_t)(FD_TILE * item(k) / k->samples) & ~(size_t)63;  /* of a tile, a sample's */
    uint64_t *bits = scratch, *other = bits + planes * PLANE, *fresh = other + planes * PLANE, *made;
    void *weights = fresh + PLANE;
    fd_bits source;
    unsigned slower = 0;
    while (k->samples >> (slower + 1) && slower < 3)  /* 64 elements at a time are the fewest */
        slower++;
    fd_bits_open(&source, k->mask, UINT64_MAX, 0);
    for (size_t i = 0; i < planes; i++)
        set_weight(k, weights, i, counted ? (double)((uint64_t)1 << i) : fd_scale(k->p[i]));

    for (; unit < end; unit++) {
        const piece t = piece_of(k, unit);
        const char *x = (const char *)k->x + t.row * k->x_row + t.from * item(k);
        if (counted)
            memset(bits, 0, planes * PLANE * 8);
        size_t digits = 0;
        for (int64_t s = 0; s < k->samples; s++) {
            sample_bits(counted ? fresh : bits + s * PLANE, &source, k, s, t.m, t.n, (fd_prefetch){x + s * share, share, 0});
            digits += (s + 1) >> digits != 0;  /* what a count of s + 1 has */
            if (counted)
                kernels->count(bits, digits, fresh);
        }
        fd_bits_finish(&source);
        source.pending = (fd_pending){
            .op = kernels->mean[k->dtype],
            .run = {.y = (char *)k->y + t.row * k->y_row + t.from * item(k), .in = {x, weights, &planes}, .bits = bits,
                    .n = (size_t)t.n, .scale = (counted ? fd_scale(*k->p) : 1) / (double)k->samples, .bypass = bypass},
            .slower = slower,
        };
        made = bits, bits = other, other = made;
    }
    fd_bits_finish(&source);
    if (bypass)
        fd_fence();
}

void fd_samples_mean(const fd_samples *k, int64_t unit, int64_t end, void *scratch)
{
    const fd_environment caller = fd_enter_environment();
    samples_mean(k, unit, end, scratch);
    fd_leave_environment(caller);
}

static FD_APART void samples_sum(const fd_samples *k, int64_t unit, int64_t end, void *scratch)
{
    const fd_sample_kernels *kernels = fd_kernels_in_use()->samples;
    uint64_t *bits = scratch;
    void *weights = bits + k->samples * PLANE;
    fd_bits source;
    fd_bits_open(&source, k->mask, UINT64_MAX, 0);
    for (int64_t s = 0; s < k->samples; s++)
        set_weight(k, weights, (size_t)s, fd_scale(k->p[s * k->p_step]));
    for (; unit < end; unit++) {
        const piece t = piece_of(k, unit);
        const char *x = (const char *)k->x + t.row * k->x_row + t.from * item(k);
        for (int64_t s = 0; s < k->samples; s++)
            sample_bits(bits + s * PLANE, &source, k, s, t.m, t.n,
                        (fd_prefetch){x + s * k->x_sample, (size_t)(FD_TILE * item(k)), 0});
        kernels->sum[k->dtype]((char *)k->y + t.row * k->y_row + t.from * item(k), x, k->x_sample, bits, (size_t)k->samples,
                               weights, (size_t)t.n);
    }
}

void fd_samples_sum(const fd_samples *k, int64_t unit, int64_t end, void *scratch)
{
    const fd_environment caller = fd_enter_environment();
    samples_sum(k, unit, end, scratch);
    fd_leave_environment(caller);
}
