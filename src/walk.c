/* From kernels, which know only consecutive elements, to arrays of any shape, strides and layout.
 *
 * A walk reorders and merges axes so that the last one is where y (and if possible x) lies consecutively, and cuts what is
 * left into units of about a tile.  Three ways to get the bits of a run of n elements:
 *
 *   along   the run follows the mask's own order: the bits of a window of the stream, shifted into place
 *   shared  one decision for the whole run (spatial dropout, drop path): all ones or all zeros
 *   across  the run crosses the mask's order (transposed, Fortran, channels-last arrays): rows of bits are made along
 *           the mask, and 64 x 64 bit squares transposed
 *
 *       mask order j ->                      memory order i ->
 *     i  b b b b ... one word a row          j  one word a column: the bits of y[j][i .. i+63]
 *     |  b b b b            -- transposed -> |
 *
 * x or y that is not consecutive along the run is packed through a tile on the stack.  Nothing here knows of threads: any
 * cut of the units gives the same result, since every decision is a function of its index. */
#include <string.h>

#include "bits.h"
#include "dispatch.h"
#include "environment.h"

enum {
    WORDS = FD_TILE / 64 + 1,                       /* of a tile's bits; kernels read one more than they use */
    ALONG = 256,                                    /* a crossed run: 4 squares, long enough for the prefetcher */
    ACROSS = 512,                                   /* runs beside it: two in three blocks of each row are whole */
    NEAR_BYTES = 1 << 15,                           /* arrays up to this size are likely to be in the first cache, */
    MEMORY_BYTES = 128 << 20,                       /* from this size on in none */
    BYPASS_BYTES = 8 << 20,                         /* stores past the cache pay from here on, */
    BYPASS_RUN = 1024,                              /* for runs of so many bytes; so does doing two things at once */
    PACK = 512,                                     /* elements that are made consecutive at a time */
};

static int64_t item_of(const fd_walk *k)
{
    static const int64_t item[FD_DTYPES] = {[FD_F32] = 4, [FD_F64] = 8, [FD_F16] = 2, [FD_BF16] = 2};
    return k->op == FD_KEEP ? 1 : item[k->dtype];
}

/* -- bits ----------------------------------------------------------------------------------------------------------- */

/* The bits of a run; meanwhile x, which they are for, is fetched. */
static const uint64_t *bits_along(fd_bits *bits, const fd_walk *k, uint64_t index, size_t n, uint64_t threshold, const void *x)
{
    return fd_bits_at(bits, index, n, threshold, (fd_prefetch){x, x && k->far ? n * (size_t)item_of(k) : 0, k->far > 1});
}

/* -- runs ------------------------------------------------------------------------------------------------------------ */

/* Four at a time: one at a time takes up to twice as long, as the loop happens to lie in the code. */
static void gather(char *out, const char *in, int64_t step, size_t n, int64_t item)
{
    size_t i = 0;
#define LOOP(T)                                                                                                        \
    do {                                                                                                               \
        T *to = (T *)out;                                                                                              \
        for (; i + 4 <= n; i += 4, in += 4 * step) {                                                                   \
            to[i] = *(const T *)in;                                                                                    \
            to[i + 1] = *(const T *)(in + step);                                                                       \
            to[i + 2] = *(const T *)(in + 2 * step);                                                                   \
            to[i + 3] = *(const T *)(in + 3 * step);                                                                   \
        }                                                                                                              \
        for (; i < n; i++, in += step)                                                                                 \
            to[i] = *(const T *)in;                                                                                    \
    } while (0)
    if (item == 8) LOOP(uint64_t);
    else if (item == 4) LOOP(uint32_t);
    else if (item == 2) LOOP(uint16_t);
    else LOOP(uint8_t);
#undef LOOP
}

static void scatter(char *out, int64_t step, const char *in, size_t n, int64_t item)
{
#define LOOP(T) for (size_t i = 0; i < n; i++) *(T *)(out + (int64_t)i * step) = ((const T *)in)[i]
    if (item == 8) LOOP(uint64_t);
    else if (item == 4) LOOP(uint32_t);
    else if (item == 2) LOOP(uint16_t);
    else LOOP(uint8_t);
#undef LOOP
}

typedef struct {
    char *y;
    const char *in[FD_INPUTS];
    const double *p;
    uint64_t m;
} place;

static void elementwise(const fd_walk *k, const fd_run_of_op *run)
{
    if (k->op == FD_KEEP)
        fd_kernels_in_use()->keep(run->y, run->bits, run->n);
    else
        fd_kernels_in_use()->op[k->op][k->dtype](run, 0, run->n);
}

static void apply_packed(const fd_walk *k, const fd_run_of_op *whole)
{
    const int last = k->ndim - 1;
    const int64_t item = item_of(k), y_step = k->y_step[last];
    uint64_t packed[FD_INPUTS][PACK], result[PACK];  /* of the widest dtype */
    fd_run_of_op run = *whole;
    for (size_t from = 0; from < whole->n; from += PACK) {
        char *y = (char *)whole->y + (int64_t)from * y_step;
        run.n = whole->n - from < PACK ? whole->n - from : PACK;
        run.bits = whole->bits + from / 64;
        run.y = y_step == item ? y : (char *)result;
        for (int a = 0; a < FD_INPUTS; a++) {
            const int64_t step = k->in_step[a][last];
            if (!whole->in[a])
                continue;
            run.in[a] = (const char *)whole->in[a] + (int64_t)from * step;
            if (step != item) {
                gather((char *)packed[a], run.in[a], step, run.n, item);
                run.in[a] = packed[a];
            }
        }
        elementwise(k, &run);
        if (y_step != item)
            scatter(y, y_step, (char *)result, run.n, item);
    }
}

static fd_run_of_op run_at(const fd_walk *k, const place *s, const uint64_t *bits, size_t n, double scale)
{
    return (fd_run_of_op){s->y, {s->in[0], s->in[1], s->in[2]}, bits, n, scale, k->bypass};
}

static void apply_run(const fd_walk *k, const place *s, const uint64_t *bits, size_t n, double scale)
{
    const fd_run_of_op run = run_at(k, s, bits, n, scale);
    if (k->packs)
        apply_packed(k, &run);
    else
        elementwise(k, &run);
}

/* The same, now or later: bits stay until the window after the next is made. */
static void apply_later(const fd_walk *k, fd_pending *pending, const place *s, const uint64_t *bits, size_t n, double scale)
{
    if (!k->later) {
        apply_run(k, s, bits, n, scale);
        return;
    }
    pending->op = fd_kernels_in_use()->op[k->op][k->dtype];
    pending->run = run_at(k, s, bits, n, scale);
    pending->done = 0;
}

/* -- the plan -------------------------------------------------------------------------------------------------------- */

static int64_t magnitude(int64_t a)
{
    return a < 0 ? -a : a;
}

static void move_axis(fd_walk *k, int from, int to)
{
#define MOVE(a)                                                                                                        \
    do {                                                                                                               \
        int64_t moved = k->a[from];                                                                                    \
        if (from < to)                                                                                                 \
            memmove(k->a + from, k->a + from + 1, (size_t)(to - from) * sizeof *k->a);                                 \
        else                                                                                                           \
            memmove(k->a + to + 1, k->a + to, (size_t)(from - to) * sizeof *k->a);                                     \
        k->a[to] = moved;                                                                                              \
    } while (0)
    MOVE(shape);
    MOVE(y_step);
    for (int i = 0; i < FD_INPUTS; i++)
        MOVE(in_step[i]);
    MOVE(m_step);
    MOVE(p_step);
#undef MOVE
}

static int in_line(const fd_walk *k, int a, int b, int64_t n)  /* does axis a go on where n elements along axis b end? */
{
    int yes = k->p_step[a] == 0 && k->y_step[a] == k->y_step[b] * n;
    for (int i = 0; i < FD_INPUTS; i++)
        yes &= !k->in[i] || k->in_step[i][a] == k->in_step[i][b] * n;
    return yes;
}

static int one_axis(const fd_walk *k, int a)  /* are axes a and a + 1 one longer axis, for every operand? */
{
    int64_t n = k->shape[a + 1];
    int one = k->y_step[a] == k->y_step[a + 1] * n && k->p_step[a] == k->p_step[a + 1] * n
           && (uint64_t)k->m_step[a] == (uint64_t)k->m_step[a + 1] * (uint64_t)n;
    for (int i = 0; i < FD_INPUTS; i++)
        one &= !k->in[i] || k->in_step[i][a] == k->in_step[i][a + 1] * n;
    return one;
}

/* Where a run would cross the mask's order: axes ..., of columns, of runs.  Both are joined, until long enough, from axes
 * that are no one axis for every operand: those of runs follow one another in memory, those of columns in the mask. */
static void plan_crossed(fd_walk *k)
{
    const int last = k->ndim - 1;
    int first = last, from = 0;
    k->column_axis = k->run_axis = 0;
    k->crossed = k->joined = 0;
    if (k->m_step[last] == 0 || k->m_step[last] == 1 || k->p_step[last] != 0)
        return;
    while (from < last && !(k->m_step[from] == 1 && k->p_step[from] == 0))
        from++;
    if (from == last)
        return;
    k->crossed = 1;
    k->run = k->shape[last];
    while (k->run < ALONG && first - 1 != from && in_line(k, first - 1, last, k->run)) {
        first--;
        k->run *= k->shape[first];
    }
    k->run_axis = first;
    k->joined = k->run <= 64 && in_line(k, from, last, k->run);
    for (k->columns = 1; from < first;) {
        move_axis(k, from, --first);
        k->columns *= k->shape[first];
        if (k->columns >= ACROSS || k->joined)
            break;
        for (from = 0; from < first && !(k->m_step[from] == k->columns && k->p_step[from] == 0);)
            from++;
    }
    k->column_axis = first;
}

void fd_plan(fd_walk *k)
{
    const int64_t item = item_of(k);
    int ndim = 0;
    for (int a = 0; a < k->ndim; a++)  /* axes of one element say nothing */
        if (k->shape[a] != 1) {
            move_axis(k, a, ndim);
            ndim++;
        }
    if (ndim == 0) {  /* one element: any axis of length 1, consecutive in all */
        k->shape[0] = 1;
        k->y_step[0] = item;
        for (int i = 0; i < FD_INPUTS; i++)
            k->in_step[i][0] = item;
        k->m_step[0] = 1;
        k->p_step[0] = 0;
        ndim = 1;
    }
    k->ndim = ndim;

    k->last = k->mask.offset;
    int64_t size = 1;
    for (int a = 0; a < ndim; a++) {
        k->last += (uint64_t)(k->shape[a] - 1) * (uint64_t)k->m_step[a];
        size *= k->shape[a];
    }
    k->units = 0;
    if (size == 0)
        return;

    for (int a = 1; a < ndim; a++)  /* y's memory order: insertion sort, stable, so C order stays as it is */
        for (int b = a; b > 0 && magnitude(k->y_step[b]) > magnitude(k->y_step[b - 1]); b--)
            move_axis(k, b, b - 1);
    ndim = 1;
    for (int a = 1; a < k->ndim; a++) {
        move_axis(k, a, ndim);
        if (one_axis(k, ndim - 1)) {
            k->shape[ndim - 1] *= k->shape[ndim];
            k->y_step[ndim - 1] = k->y_step[ndim];
            for (int i = 0; i < FD_INPUTS; i++)
                k->in_step[i][ndim - 1] = k->in_step[i][ndim];
            k->m_step[ndim - 1] = k->m_step[ndim];
            k->p_step[ndim - 1] = k->p_step[ndim];
        } else {
            ndim++;
        }
    }
    k->ndim = ndim;

    const int last = ndim - 1;
    k->packs = k->y_step[last] != item;
    for (int i = 0; i < FD_INPUTS; i++)
        k->packs |= k->in[i] && k->in_step[i][last] != item;

    plan_crossed(k);
    const int64_t n = k->shape[last], together = k->joined ? k->run * k->columns : k->crossed ? k->run : n;
    k->far = (size * item > NEAR_BYTES) + (size * item >= MEMORY_BYTES);
    /* Store past the cache when x and y together are larger than what a cache is likely to hold, and y is not x. */
    k->bypass = k->y != k->in[0] && k->y != k->in[1] && k->y_step[last] == item && size * item >= BYPASS_BYTES
             && together * item >= BYPASS_RUN;
    k->later = !k->packs && k->op != FD_KEEP && size * item >= BYPASS_BYTES;
    k->rows = size / n;
    k->tiles = k->rows_a_unit = 1;
    k->ahead = 0;
    if (k->crossed) {
        k->rows = size / (k->run * k->columns);
        k->tiles = (k->run + ALONG - 1) / ALONG * ((k->columns + ACROSS - 1) / ACROSS);
        k->units = k->rows * k->tiles;
        k->ahead = k->columns < ACROSS && (uint64_t)k->m_step[last] <= ACROSS;
        return;
    }
    if (n > FD_TILE) {
        k->tiles = (n + FD_TILE - 1) / FD_TILE;
    } else {
        k->rows_a_unit = (FD_TILE + n - 1) / n;
        if (ndim > 1) {
            uint64_t next = (uint64_t)k->m_step[last - 1];
            k->ahead = next != 0 && next <= (n > FD_BLOCK || k->m_step[last] == 0 ? 2 * (uint64_t)n : FD_BLOCK);
        }
    }
    k->units = (k->rows + k->rows_a_unit - 1) / k->rows_a_unit * k->tiles;
}

/* -- the run of a plan ------------------------------------------------------------------------------------------------ */

static void step_place(place *s, const fd_walk *k, int axis, int64_t n)
{
    s->y += n * k->y_step[axis];
    for (int i = 0; i < FD_INPUTS; i++)
        s->in[i] = s->in[i] ? s->in[i] + n * k->in_step[i][axis] : NULL;
    s->p += n * k->p_step[axis];
    s->m += (uint64_t)n * (uint64_t)k->m_step[axis];
}

/* Moves s to row number `row` of the axes from `first` up to `end`; `at` is where that is along each. */
static void go_to_row(place *s, const fd_walk *k, int first, int end, int64_t row, int64_t *at)
{
    for (int a = end - 1; a >= first; a--) {
        at[a] = row % k->shape[a];
        row /= k->shape[a];
        step_place(s, k, a, at[a]);
    }
}

static void next_row(place *s, const fd_walk *k, int first, int end, int64_t *at)
{
    for (int a = end - 1; a >= first; a--) {
        if (++at[a] < k->shape[a]) {
            step_place(s, k, a, 1);
            return;
        }
        step_place(s, k, a, 1 - k->shape[a]);
        at[a] = 0;
    }
}

static void run_row(const fd_walk *k, fd_bits *source, place s, int64_t n)
{
    const int last = k->ndim - 1;
    const int64_t m_step = k->m_step[last], p_step = k->p_step[last];
    uint64_t bits[WORDS];
    if (p_step != 0) {  /* a p for each element of the run: only where memory order turned the axes */
        for (int64_t i = 0; i < n; i++) {
            bits[0] = (uint64_t)fd_bit_at(&k->mask, s.m, fd_threshold(*s.p));
            apply_run(k, &s, bits, 1, fd_scale(*s.p));
            step_place(&s, k, last, 1);
        }
        return;
    }
    const uint64_t threshold = fd_threshold(*s.p);
    const double scale = fd_scale(*s.p);
    if (m_step == 1) {
        const void *x = k->in_step[0][last] == item_of(k) ? s.in[0] : NULL;
        const uint64_t *along = bits_along(source, k, s.m, (size_t)n, threshold, x);
        apply_later(k, &source->pending, &s, along, (size_t)n, scale);
    } else if (m_step == 0) {
        int kept = *bits_along(source, k, s.m, 1, threshold, NULL) & 1;
        memset(bits, kept ? 255 : 0, ((size_t)n / 64 + 1) * 8);
        apply_run(k, &s, bits, (size_t)n, scale);
    } else {
        memset(bits, 0, ((size_t)n / 64 + 1) * 8);
        for (int64_t i = 0; i < n; i++)
            bits[i / 64] |= (uint64_t)fd_bit_at(&k->mask, s.m + (uint64_t)i * (uint64_t)m_step, threshold) << (i % 64);
        apply_run(k, &s, bits, (size_t)n, scale);
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

static void run_crossed(const fd_walk *k, fd_bits *source, place s, int64_t i0, int64_t j0)
{
    const int64_t rows = k->run - i0 < ALONG ? k->run - i0 : ALONG;
    const int64_t columns = k->columns - j0 < ACROSS ? k->columns - j0 : ACROSS;
    const uint64_t threshold = fd_threshold(*s.p);
    const double scale = fd_scale(*s.p);
    uint64_t square[ACROSS / 64][ALONG / 64][64];
    int64_t at[FD_MAX_NDIM];
    go_to_row(&s, k, k->run_axis, k->ndim, i0, at);
    if (rows < ALONG)
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
        uint64_t bits[ACROSS + 2];
        memset(bits, 0, (size_t)(columns * rows / 64 + 2) * 8);
        for (int64_t j = 0, bit = 0; j < columns; j++, bit += rows) {
            uint64_t some = square[j / 64][0][j % 64];
            bits[bit / 64] |= some << (bit % 64);
            bits[bit / 64 + 1] |= some >> 1 >> (63 - bit % 64);
        }
        apply_run(k, &s, bits, (size_t)(columns * rows), scale);
        return;
    }
    for (int64_t j = 0; j < columns; j++) {
        uint64_t bits[ALONG / 64 + 1];
        for (int64_t i = 0; i < rows; i += 64)
            bits[i / 64] = square[j / 64][i / 64][j % 64];
        apply_run(k, &s, bits, (size_t)rows, scale);
        next_row(&s, k, k->column_axis, k->run_axis, at);
    }
}

static FD_APART void run_units(const fd_walk *k, int64_t unit, int64_t end)
{
    const int last = k->ndim - 1;
    const place start = {.y = k->y, .in = {k->in[0], k->in[1], k->in[2]}, .p = k->p, .m = k->mask.offset};
    const int64_t n = k->shape[last];
    int64_t at[FD_MAX_NDIM];
    place s;
    fd_bits bits;
    fd_bits_open(&bits, k->mask, k->last, k->ahead);
    if (k->crossed) {
        const int64_t runs = (k->run + ALONG - 1) / ALONG;
        for (; unit < end; unit++) {
            int64_t tile = unit % k->tiles;
            s = start;
            go_to_row(&s, k, 0, k->column_axis, unit / k->tiles, at);
            run_crossed(k, &bits, s, tile % runs * ALONG, tile / runs * ACROSS);
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

void fd_run(const fd_walk *k, int64_t unit, int64_t end)
{
    if (unit >= end)
        return;
    const fd_environment caller = fd_enter_environment();
    run_units(k, unit, end);
    fd_leave_environment(caller);
    if (k->bypass)
        fd_fence();
}
