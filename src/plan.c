/* From arrays of any shape, strides and layout to consecutive runs: which axes are merged, in which order they are walked, and
 * where the bits of a run come from.
 *
 * The last axis of a plan is where y (and if possible x) lies consecutively; what is left is cut into units of about a tile.
 * Three ways to get the bits of a run of n elements:
 *
 *   along   the run follows the mask's own order: the bits of a window of the stream, shifted into place
 *   shared  one decision for the whole run (spatial dropout, drop path): all ones or all zeros
 *   across  the run crosses the mask's order (transposed, Fortran, channels-last arrays): rows of bits are made along
 *           the mask, and 64 x 64 bit squares transposed
 *
 *       mask order j ->                      memory order i ->
 *     i  b b b b ... one word a row          j  one word a column: the bits of y[j][i .. i+63]
 *     |  b b b b         -- transposed ->    |
 */
#include "plan.h"

#include <string.h>

#include "bits.h"

enum {
    NEAR_BYTES = 1 << 15,      /* arrays up to this size are likely to be in the first cache, */
    MEMORY_BYTES = 128 << 20,  /* from this size on in none */
    NONTEMPORAL_RUN = 1024,    /* shorter runs, in bytes, leave too many lines half stored */
};

static int64_t magnitude(int64_t a)
{
    return a < 0 ? -a : a;
}

static void move_axis(fd_plan *k, int from, int to)
{
    const fd_axis moved = k->axis[from];
    if (from < to)
        memmove(k->axis + from, k->axis + from + 1, (size_t)(to - from) * sizeof moved);
    else
        memmove(k->axis + to + 1, k->axis + to, (size_t)(from - to) * sizeof moved);
    k->axis[to] = moved;
}

/* Do steps along `outer` go on where n elements along `inner` end, for y and every input? */
static int contiguous(const fd_plan *k, const fd_axis *outer, const fd_axis *inner, int64_t n)
{
    int yes = outer->y == inner->y * n;
    for (int i = 0; i < FD_INPUTS; i++)
        yes &= !k->job->in[i] || outer->in[i] == inner->in[i] * n;
    return yes;
}

/* Axes of one element say nothing; where all are, one remains, consecutive in every array. */
static void copy_axes(fd_plan *k)
{
    k->ndim = 0;
    k->size = 1;
    k->last = k->job->mask.offset;
    for (int a = 0; a < k->job->ndim; a++) {
        const fd_axis *axis = &k->job->axis[a];
        k->size *= axis->n;
        k->last += (uint64_t)(axis->n - 1) * (uint64_t)axis->mask;
        if (axis->n != 1)
            k->axis[k->ndim++] = *axis;
    }
    if (k->ndim == 0)
        k->axis[k->ndim++] = (fd_axis){.n = 1, .y = k->item, .in = {k->item, k->item, k->item}, .mask = 1};
}

/* y's memory order: insertion sort, stable, so C order stays as it is. */
static void sort_axes(fd_plan *k)
{
    for (int a = 1; a < k->ndim; a++)
        for (int b = a; b > 0 && magnitude(k->axis[b].y) > magnitude(k->axis[b - 1].y); b--)
            move_axis(k, b, b - 1);
}

/* Neighbours that are one longer axis for every operand, mask and p included. */
static void merge_axes(fd_plan *k)
{
    int last = 0;
    for (int a = 1; a < k->ndim; a++) {
        fd_axis *outer = &k->axis[last];
        const fd_axis inner = k->axis[a];
        if (contiguous(k, outer, &inner, inner.n) && outer->p == inner.p * inner.n
            && (uint64_t)outer->mask == (uint64_t)inner.mask * (uint64_t)inner.n) {
            const int64_t n = outer->n * inner.n;
            *outer = inner;
            outer->n = n;
        } else {
            k->axis[++last] = inner;
        }
    }
    k->ndim = last + 1;
}

static int in_line(const fd_plan *k, int a, int b, int64_t n)  /* does axis a go on where n elements along axis b end? */
{
    return k->axis[a].p == 0 && contiguous(k, &k->axis[a], &k->axis[b], n);
}

static int follows_mask(const fd_axis *axis, int64_t step)
{
    return axis->mask == step && axis->p == 0;
}

/* Where a run would cross the mask's order, axes become ..., of columns, of runs: merge adjacent axes until run >= FD_ALONG and
 * columns >= FD_ACROSS; axes of runs are contiguous in memory, those of columns in the mask. */
static void plan_crossed(fd_plan *k)
{
    const int last = k->ndim - 1;
    const fd_axis *axis = k->axis;
    int first = last, from = 0;
    k->crossed = k->joined = k->column_axis = k->run_axis = 0;
    k->run = k->columns = 1;
    if (k->uniforms || axis[last].mask == 0 || axis[last].mask == 1 || axis[last].p != 0)
        return;
    while (from < last && !follows_mask(&axis[from], 1))
        from++;
    if (from == last)
        return;
    k->crossed = 1;
    k->run = axis[last].n;
    while (k->run < FD_ALONG && first - 1 != from && in_line(k, first - 1, last, k->run))
        k->run *= axis[--first].n;
    k->run_axis = first;
    k->joined = k->run <= 64 && in_line(k, from, last, k->run);
    while (from < first) {
        move_axis(k, from, --first);
        k->columns *= axis[first].n;
        if (k->columns >= FD_ACROSS || k->joined)
            break;
        for (from = 0; from < first && !follows_mask(&axis[from], k->columns);)
            from++;
    }
    k->column_axis = first;
}

static int64_t pieces(int64_t n, int64_t of)
{
    return (n + of - 1) / of;
}

static void cut_into_units(fd_plan *k)
{
    const fd_axis *last = &k->axis[k->ndim - 1];
    const int64_t n = last->n;
    k->rows = k->size / (k->crossed ? k->run * k->columns : n);
    k->tiles = k->rows_a_unit = 1;
    k->ahead = 0;
    if (k->crossed) {
        k->tiles = pieces(k->run, FD_ALONG) * pieces(k->columns, FD_ACROSS);
        k->ahead = k->columns < FD_ACROSS && (uint64_t)last->mask <= FD_ACROSS;
    } else if (n > FD_TILE) {
        k->tiles = pieces(n, FD_TILE);
    } else {
        k->rows_a_unit = pieces(FD_TILE, n);
        if (k->ndim > 1) {
            const uint64_t next = (uint64_t)k->axis[k->ndim - 2].mask;
            k->ahead = next != 0 && next <= (n > FD_BLOCK || last->mask == 0 ? 2 * (uint64_t)n : FD_BLOCK);
        }
    }
    k->units = pieces(k->rows, k->rows_a_unit) * k->tiles;
}

void fd_plan_elementwise(fd_plan *k, const fd_elementwise *job)
{
    k->job = job;
    k->uniforms = job->op == FD_UNIFORM;
    k->item = job->op == FD_KEEP ? 1 : k->uniforms ? 4 : fd_item_size(job->dtype);
    copy_axes(k);
    k->units = 0;
    if (k->size == 0)
        return;
    sort_axes(k);
    merge_axes(k);
    plan_crossed(k);

    const fd_axis *last = &k->axis[k->ndim - 1];
    const int64_t bytes = k->size * k->item, run = k->crossed ? k->run * (k->joined ? k->columns : 1) : last->n;
    const int large = bytes >= FD_NONTEMPORAL, in_place = job->y == job->in[0] || job->y == job->in[1];
    k->packs = last->y != k->item;
    for (int i = 0; i < FD_INPUTS; i++)
        k->packs |= job->in[i] && last->in[i] != k->item;
    k->distance = (bytes > NEAR_BYTES) + (bytes >= MEMORY_BYTES);
    k->nontemporal = large && !in_place && last->y == k->item && run * k->item >= NONTEMPORAL_RUN;
    k->overlaps = large && !k->packs && job->op < FD_OPS;
    cut_into_units(k);
}
