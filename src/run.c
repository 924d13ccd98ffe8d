/* Runs the units of a plan: the bits of each consecutive run, and the op on it.
 *
 * x or y that is not consecutive along the run is packed through a tile on the stack.  Any cut of the units gives the same
 * result, since every decision is a function of its index. */
#include <string.h>

#include "bits.h"
#include "dispatch.h"
#include "plan.h"

enum {
    WORDS = FD_TILE / 64 + 1,  /* of a tile's bits; kernels read one more than they use */
    PACK = 512,                /* elements that are made consecutive at a time */
};

/* The bits of a run; meanwhile x, which they are for, is fetched. */
static const uint64_t *bits_along(fd_bits *bits, const fd_plan *k, uint64_t index, size_t n, uint64_t threshold, const void *x)
{
    return fd_bits_at(bits, index, n, threshold, (fd_prefetch){x, x && k->distance ? n * (size_t)k->item : 0, k->distance > 1});
}

/* -- runs ------------------------------------------------------------------------------------------------------------ */

/* Four at a time: one at a time takes up to twice as long, as the loop happens to lie in the code.  `item` is a constant. */
static inline void copy_items(char *out, int64_t out_step, const char *in, int64_t in_step, size_t n, size_t item)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4, out += 4 * out_step, in += 4 * in_step)
        for (int j = 0; j < 4; j++)
            memcpy(out + j * out_step, in + j * in_step, item);
    for (; i < n; i++, out += out_step, in += in_step)
        memcpy(out, in, item);
}

static void copy_strided(char *out, int64_t out_step, const char *in, int64_t in_step, size_t n, int64_t item)
{
    switch (item) {
    case 8: copy_items(out, out_step, in, in_step, n, 8); break;
    case 4: copy_items(out, out_step, in, in_step, n, 4); break;
    case 2: copy_items(out, out_step, in, in_step, n, 2); break;
    default: copy_items(out, out_step, in, in_step, n, 1);
    }
}

typedef struct {
    char *y;
    const char *in[FD_INPUTS];
    const double *p;
    uint64_t m;
} place;

/* What is drawn for a run, bits or uniforms, and the numbers that its p gives the op. */
typedef struct {
    const uint64_t *bits;
    const uint32_t *uniforms;
    double number[FD_NUMBERS];
} draw;

static void elementwise(const fd_plan *k, const fd_run_of_op *run)
{
    if (k->job->op == FD_KEEP)
        fd_kernels_in_use()->keep(run->y, run->bits, run->n);
    else if (k->job->op == FD_UNIFORM)
        memcpy(run->y, run->uniforms, run->n * sizeof *run->uniforms);
    else
        fd_kernels_in_use()->op[k->job->dtype][k->job->op](run, 0, run->n);
}

static void apply_packed(const fd_plan *k, const fd_run_of_op *whole)
{
    const fd_axis *last = &k->axis[k->ndim - 1];
    uint64_t packed[FD_INPUTS][PACK], result[PACK];  /* of the widest dtype */
    fd_run_of_op run = *whole;
    for (size_t from = 0; from < whole->n; from += PACK) {
        char *y = (char *)whole->y + (int64_t)from * last->y;
        run.n = whole->n - from < PACK ? whole->n - from : PACK;
        run.bits = k->uniforms ? NULL : whole->bits + from / 64;
        run.uniforms = k->uniforms ? whole->uniforms + from : NULL;
        run.y = last->y == k->item ? y : (char *)result;
        for (int i = 0; i < FD_INPUTS; i++) {
            if (!whole->in[i])
                continue;
            run.in[i] = (const char *)whole->in[i] + (int64_t)from * last->in[i];
            if (last->in[i] != k->item) {
                copy_strided((char *)packed[i], k->item, run.in[i], last->in[i], run.n, k->item);
                run.in[i] = packed[i];
            }
        }
        elementwise(k, &run);
        if (last->y != k->item)
            copy_strided(y, last->y, (char *)result, k->item, run.n, k->item);
    }
}

static fd_run_of_op run_at(const fd_plan *k, const place *s, const draw *d, size_t n)
{
    return (fd_run_of_op){.y = s->y, .in = {s->in[0], s->in[1], s->in[2]}, .bits = d->bits, .uniforms = d->uniforms, .n = n,
                          .number = {d->number[0], d->number[1]}, .nontemporal = k->nontemporal};
}

static void apply_run(const fd_plan *k, const place *s, const draw *d, size_t n)
{
    const fd_run_of_op run = run_at(k, s, d, n);
    if (k->packs)
        apply_packed(k, &run);
    else
        elementwise(k, &run);
}

/* The same, now or later: bits stay until the window after the next is made. */
static void apply_later(const fd_plan *k, fd_pending *pending, const place *s, const draw *d, size_t n)
{
    if (k->overlaps)
        *pending = (fd_pending){.op = fd_kernels_in_use()->op[k->job->dtype][k->job->op], .run = run_at(k, s, d, n)};
    else
        apply_run(k, s, d, n);
}

/* -- the run of a plan ------------------------------------------------------------------------------------------------ */

static void step_place(place *s, const fd_plan *k, int axis, int64_t n)
{
    s->y += n * k->axis[axis].y;
    for (int i = 0; i < FD_INPUTS; i++)
        s->in[i] = s->in[i] ? s->in[i] + n * k->axis[axis].in[i] : NULL;
    s->p += n * k->axis[axis].p;
    s->m += (uint64_t)n * (uint64_t)k->axis[axis].mask;
}

/* Moves s to row number `row` of the axes from `first` up to `end`; `at` is where that is along each. */
static void go_to_row(place *s, const fd_plan *k, int first, int end, int64_t row, int64_t *at)
{
    for (int a = end - 1; a >= first; a--) {
        at[a] = row % k->axis[a].n;
        row /= k->axis[a].n;
        step_place(s, k, a, at[a]);
    }
}

static void next_row(place *s, const fd_plan *k, int first, int end, int64_t *at)
{
    for (int a = end - 1; a >= first; a--) {
        if (++at[a] < k->axis[a].n) {
            step_place(s, k, a, 1);
            return;
        }
        step_place(s, k, a, 1 - k->axis[a].n);
        at[a] = 0;
    }
}

/* PACK at a time, since the stack has no place for a tile of them; one where each element has its p. */
static __attribute__((noinline)) void run_uniforms(const fd_plan *k, place s, int64_t n)
{
    const int last = k->ndim - 1;
    const int64_t step = k->axis[last].mask, most = k->axis[last].p ? 1 : PACK;
    uint32_t uniforms[PACK];
    for (int64_t from = 0; from < n; from += most) {
        const int64_t part = n - from < most ? n - from : most;
        if (step == 1)
            fd_uniforms(uniforms, &k->job->mask, s.m, (size_t)part);
        for (int64_t i = 0; i < part && step != 1; i++)
            fd_uniforms(&uniforms[i], &k->job->mask, s.m + (uint64_t)i * (uint64_t)step, 1);
        apply_run(k, &s, &(draw){NULL, uniforms, {fd_scale(*s.p)}}, (size_t)part);
        step_place(&s, k, last, part);
    }
}

static void run_row(const fd_plan *k, fd_bits *source, place s, int64_t n)
{
    if (k->uniforms) {
        run_uniforms(k, s, n);
        return;
    }
    const int last = k->ndim - 1;
    const fd_axis *axis = &k->axis[last];
    const fd_source *mask = &k->job->mask;
    uint64_t bits[WORDS];
    if (axis->p != 0) {  /* a p for each element of the run: only where memory order turned the axes */
        for (int64_t i = 0; i < n; i++) {
            bits[0] = (uint64_t)fd_bit_at(mask, s.m, fd_threshold(*s.p));
            apply_run(k, &s, &(draw){bits, NULL, {fd_scale(*s.p)}}, 1);
            step_place(&s, k, last, 1);
        }
        return;
    }
    const uint64_t threshold = fd_threshold(*s.p);
    draw d = {bits, NULL, {fd_scale(*s.p)}};
    if (axis->mask == 1) {
        d.bits = bits_along(source, k, s.m, (size_t)n, threshold, axis->in[0] == k->item ? s.in[0] : NULL);
        apply_later(k, &source->pending, &s, &d, (size_t)n);
    } else if (axis->mask == 0) {
        const int kept = *bits_along(source, k, s.m, 1, threshold, NULL) & 1;
        memset(bits, kept ? 255 : 0, ((size_t)n / 64 + 1) * 8);
        apply_run(k, &s, &d, (size_t)n);
    } else {
        memset(bits, 0, ((size_t)n / 64 + 1) * 8);
        for (int64_t i = 0; i < n; i++)
            bits[i / 64] |= (uint64_t)fd_bit_at(mask, s.m + (uint64_t)i * (uint64_t)axis->mask, threshold) << (i % 64);
        apply_run(k, &s, &d, (size_t)n);
    }
}

/* Transpose a 64 x 64 bit square: bit j of row[i] becomes bit i of row[j] (Hacker's Delight 7-3: swap ever smaller quarters). */
static void transpose64(uint64_t row[64])
{
    uint64_t low = 0x00000000FFFFFFFF;
    for (int d = 32; d; d >>= 1, low ^= low << d)
        for (int i = 0; i < 64; i = ((i | d) + 1) & ~d) {
            uint64_t swap = (row[i] >> d ^ row[i | d]) & low;
            row[i] ^= swap << d;
            row[i | d] ^= swap;
        }
}

static void run_crossed(const fd_plan *k, fd_bits *source, place s, int64_t i0, int64_t j0)
{
    const int64_t rows = k->run - i0 < FD_ALONG ? k->run - i0 : FD_ALONG;
    const int64_t columns = k->columns - j0 < FD_ACROSS ? k->columns - j0 : FD_ACROSS;
    const uint64_t threshold = fd_threshold(*s.p);
    draw d = {.number = {fd_scale(*s.p)}};
    uint64_t square[FD_ACROSS / 64][FD_ALONG / 64][64];
    int64_t at[FD_MAX_NDIM];
    go_to_row(&s, k, k->run_axis, k->ndim, i0, at);
    if (rows < FD_ALONG)
        memset(square, 0, sizeof square);
    place row = s;
    for (int64_t i = 0; i < rows; i++) {
        const uint64_t *bits = bits_along(source, k, row.m + (uint64_t)j0, (size_t)columns, threshold, NULL);
        for (int64_t j = 0; j < columns; j += 64)
            square[j / 64][i / 64][i % 64] = bits[j / 64];
        next_row(&row, k, k->run_axis, k->ndim, at);
    }
    for (int64_t j = 0; j < columns; j += 64)
        for (int64_t i = 0; i < rows; i += 64)
            transpose64(square[j / 64][i / 64]);
    go_to_row(&s, k, k->column_axis, k->run_axis, j0, at);
    if (k->joined) {  /* short runs, one after the other */
        uint64_t bits[FD_ACROSS + 2];
        memset(bits, 0, (size_t)(columns * rows / 64 + 2) * 8);
        for (int64_t j = 0, bit = 0; j < columns; j++, bit += rows) {
            uint64_t some = square[j / 64][0][j % 64];
            bits[bit / 64] |= some << (bit % 64);
            bits[bit / 64 + 1] |= some >> 1 >> (63 - bit % 64);
        }
        d.bits = bits;
        apply_run(k, &s, &d, (size_t)(columns * rows));
        return;
    }
    for (int64_t j = 0; j < columns; j++) {
        uint64_t bits[FD_ALONG / 64 + 1];
        for (int64_t i = 0; i < rows; i += 64)
            bits[i / 64] = square[j / 64][i / 64][j % 64];
        d.bits = bits;
        apply_run(k, &s, &d, (size_t)rows);
        next_row(&s, k, k->column_axis, k->run_axis, at);
    }
}

static void run_units(const void *plan, int64_t unit, int64_t end)
{
    const fd_plan *k = plan;
    const int last = k->ndim - 1;
    const place start = {.y = k->job->y, .in = {k->job->in[0], k->job->in[1], k->job->in[2]}, .p = k->job->p, .m = k->job->mask.offset};
    const int64_t n = k->axis[last].n;
    int64_t at[FD_MAX_NDIM];
    place s;
    fd_bits bits;
    fd_bits_open(&bits, k->job->mask, k->last, k->ahead);
    if (k->crossed) {
        const int64_t runs = (k->run + FD_ALONG - 1) / FD_ALONG;
        for (; unit < end; unit++) {
            int64_t tile = unit % k->tiles;
            s = start;
            go_to_row(&s, k, 0, k->column_axis, unit / k->tiles, at);
            run_crossed(k, &bits, s, tile % runs * FD_ALONG, tile / runs * FD_ACROSS);
        }
        return;
    }
    if (k->tiles > 1) {
        for (; unit < end; unit++) {  /* rows within a tile, so that a mask shared by rows is made once */
            int64_t tile = unit / k->rows, from = tile * FD_TILE, to = from + FD_TILE;
            s = start;
            go_to_row(&s, k, 0, last, unit % k->rows, at);
            step_place(&s, k, last, from);
            run_row(k, &bits, s, (to < n ? to : n) - from);
        }
        fd_bits_finish(&bits);
        return;
    }
    int64_t row = unit * k->rows_a_unit, stop = end * k->rows_a_unit;
    s = start;
    go_to_row(&s, k, 0, last, row, at);
    for (; row < stop && row < k->rows; row++) {
        run_row(k, &bits, s, n);
        next_row(&s, k, 0, last, at);
    }
    fd_bits_finish(&bits);
}

fd_work fd_elementwise_work(const fd_plan *plan)
{
    return (fd_work){run_units, plan, plan->units, plan->nontemporal};
}

void fd_run_elementwise(const fd_elementwise *job, int threads)
{
    fd_plan plan;
    fd_plan_elementwise(&plan, job);
    const fd_work work = fd_elementwise_work(&plan);
    fd_share(&work, plan.size >= FD_SERIAL ? threads : 1);
}
