/* The walk of samples.h: tiles of the array, and for each the bits of every sample, made and used in cache. */
#include "samples.h"

#include <string.h>

#include "bits.h"
#include "dispatch.h"

enum { PLANE = FD_TILE / 64 };  /* words of a tile's bits */

static int64_t tiles(const fd_samples *k)
{
    return (k->n + FD_TILE - 1) / FD_TILE;
}

/* With one p the planes are the digits of a count, else the samples. */
static size_t planes_of(const fd_samples *k)
{
    size_t digits = 0;
    while (k->samples >> digits)
        digits++;
    return k->mean && k->p_step == 0 ? digits : (size_t)k->samples;
}

int64_t fd_samples_parts(const fd_samples *k, int threads)
{
    const int64_t units = k->rows * tiles(k), parts = threads < units ? threads : units;
    return k->rows * k->n * k->samples >= FD_SERIAL ? parts : 1;
}

/* A weight and a plane of bits for each; of the mean twice, since one tile waits while the next one's are made, and one
 * plane to count from.  Whole cache lines. */
size_t fd_samples_scratch(const fd_samples *k)
{
    const size_t planes = planes_of(k);
    return (planes * 8 + (k->mean ? 2 * planes + 1 : planes) * PLANE * 8 + 63) / 64 * 64;
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

static int past_the_cache(const fd_samples *k)
{
    return k->mean && k->y != k->x && k->rows * k->n * fd_item_size(k->dtype) >= FD_NONTEMPORAL;
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
static void samples_mean(const fd_samples *k, int64_t unit, int64_t end, void *scratch)
{
    const fd_sample_kernels *kernels = fd_kernels_in_use()->samples[k->dtype];
    const int counted = k->p_step == 0;
    const size_t planes = planes_of(k), share = (size_t)(FD_TILE * fd_item_size(k->dtype) / k->samples) & ~(size_t)63;  /* of a tile, a sample's */
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
        const char *x = (const char *)k->x + t.row * k->x_row + t.from * fd_item_size(k->dtype);
        if (counted)
            memset(bits, 0, planes * PLANE * 8);
        size_t digits = 0;
        for (int64_t s = 0; s < k->samples; s++) {
            sample_bits(counted ? fresh : bits + s * PLANE, &source, k, s, t.m, t.n, (fd_prefetch){x + s * share, share, 0});
            digits += (s + 1) >> digits != 0;  /* what a count of s + 1 has */
            if (counted)
                fd_kernels_in_use()->count(bits, digits, fresh);
        }
        fd_bits_finish(&source);
        source.pending = (fd_pending){
            .op = kernels->mean,
            .run = {.y = (char *)k->y + t.row * k->y_row + t.from * fd_item_size(k->dtype), .in = {x, weights, &planes}, .bits = bits,
                    .n = (size_t)t.n, .number = {(counted ? fd_scale(*k->p) : 1) / (double)k->samples}, .nontemporal = past_the_cache(k)},
            .slower = slower,
        };
        made = bits, bits = other, other = made;
    }
    fd_bits_finish(&source);
}

static void samples_sum(const fd_samples *k, int64_t unit, int64_t end, void *scratch)
{
    const fd_sample_kernels *kernels = fd_kernels_in_use()->samples[k->dtype];
    uint64_t *bits = scratch;
    void *weights = bits + k->samples * PLANE;
    fd_bits source;
    fd_bits_open(&source, k->mask, UINT64_MAX, 0);
    for (int64_t s = 0; s < k->samples; s++)
        set_weight(k, weights, (size_t)s, fd_scale(k->p[s * k->p_step]));
    for (; unit < end; unit++) {
        const piece t = piece_of(k, unit);
        const char *x = (const char *)k->x + t.row * k->x_row + t.from * fd_item_size(k->dtype);
        for (int64_t s = 0; s < k->samples; s++)
            sample_bits(bits + s * PLANE, &source, k, s, t.m, t.n,
                        (fd_prefetch){x + s * k->x_sample, (size_t)(FD_TILE * fd_item_size(k->dtype)), 0});
        char *y = (char *)k->y + t.row * k->y_row + t.from * fd_item_size(k->dtype);
        kernels->sum(y, x, k->x_sample, bits, (size_t)k->samples, weights, (size_t)t.n);
    }
}

static void samples(const void *job, int64_t part, int64_t end)
{
    const fd_samples *k = job;
    const int64_t units = k->rows * tiles(k);
    for (; part < end; part++)
        (k->mean ? samples_mean : samples_sum)(k, units * part / k->parts, units * (part + 1) / k->parts,
                                               (char *)k->scratch + part * (int64_t)fd_samples_scratch(k));
}

fd_work fd_samples_work(const fd_samples *job)
{
    return (fd_work){samples, job, job->parts, past_the_cache(job)};
}

void fd_run_samples(const fd_samples *job, int threads)
{
    const fd_work work = fd_samples_work(job);
    fd_share(&work, threads);
}
