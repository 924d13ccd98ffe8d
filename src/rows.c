/* From row kernels, which know one row, to arrays of rows. */
#include "rows.h"

#include <math.h>
#include <string.h>

#include "bits.h"
#include "dispatch.h"
#include "environment.h"

void fd_losses_run(const fd_losses *k, int64_t first, int64_t end)
{
    const fd_environment caller = fd_enter_environment();
    fd_kernels_in_use()->rows->losses[k->dtype](k, first, end);
    fd_leave_environment(caller);
    if (k->bypass)
        fd_fence();
}

/* -- softmax with dropout ------------------------------------------------------------------------------------------------ */

static const int64_t ITEM[FD_DTYPES] = {[FD_F32] = 4, [FD_F64] = 8, [FD_F16] = 2, [FD_BF16] = 2};

/* Opens the bits of a mask of `size` elements that are asked for in order. */
static void open_bits(fd_bits *bits, fd_source mask, int64_t size)
{
    fd_bits_open(bits, mask, mask.offset + (uint64_t)(size - 1), 1);
}

static const uint64_t *bits_at(fd_bits *bits, int64_t index, size_t n, double p)
{
    return fd_bits_at(bits, bits->mask.offset + (uint64_t)index, n, fd_threshold(p), (fd_prefetch){0});
}

static const char *operand_row(const char *base, const int64_t *step, const fd_softmax *k, int64_t row)
{
    if (!base)
        return NULL;
    for (int a = k->ndim - 1; a >= 0; a--) {
        base += row % k->shape[a] * step[a];
        row /= k->shape[a];
    }
    return base;
}

/* One row, cut into tiles.  The exponentials of a tile are kept while it is worked on; a row of more than one tile makes them
 * again for its second sweep. */
typedef struct {
    const fd_softmax *k;
    int64_t row;
    double p;
    const char *x, *bias;
    const uint8_t *allow;
    fd_bits bits;
    double weight[FD_TILE + 16];  /* or floats */
} soft_row;

static void open_rows(soft_row *r, const fd_softmax *k)
{
    r->k = k;
    open_bits(&r->bits, k->mask, k->rows * k->n);
}

static void start_row(soft_row *r, int64_t row)
{
    r->row = row;
    r->p = r->k->p[row * r->k->p_step];
    r->x = r->k->x + row * r->k->n * ITEM[r->k->dtype];
    r->bias = operand_row(r->k->bias, r->k->bias_step, r->k, row);
    r->allow = (const uint8_t *)operand_row(r->k->allow, r->k->allow_step, r->k, row);
}

/* The tile from element i of the row. */
typedef struct {
    size_t n;
    int64_t index, at;  /* elements and bytes from the start of the arrays */
    const char *x, *bias;
    const uint8_t *allow;
} part;

static part part_at(const soft_row *r, int64_t i)
{
    const enum fd_dtype dtype = r->k->dtype;
    return (part){
        .n = r->k->n - i < FD_TILE ? (size_t)(r->k->n - i) : FD_TILE,
        .index = r->row * r->k->n + i,
        .at = (r->row * r->k->n + i) * ITEM[dtype],
        .x = r->x + i * ITEM[dtype],
        .bias = r->bias ? r->bias + i * (dtype == FD_F64 ? 8 : 4) : NULL,
        .allow = r->allow ? r->allow + i : NULL,
    };
}

static double exp_of(soft_row *r, const part *t, double shift)
{
    return fd_kernels_in_use()->rows->soft_exp[r->k->dtype](r->weight, t->x, t->bias, t->allow, t->n, shift);
}

static FD_APART void softmax_forward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_row_kernels *kernels = fd_kernels_in_use()->rows;
    const int several = k->n > FD_TILE;
    soft_row r;
    open_rows(&r, k);
    for (; row < end; row++) {
        double max = -INFINITY, sum = 0;
        start_row(&r, row);
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            const double high = kernels->soft_max[k->dtype](t.x, t.bias, t.allow, t.n);
            max = high > max ? high : max;
        }
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            sum += exp_of(&r, &t, max);
        }
        const double scale = sum == 0 ? 0 : fd_scale(r.p) / sum;
        k->log_sum[row] = sum == 0 ? INFINITY : max + log(sum);
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            if (several)
                exp_of(&r, &t, max);
            kernels->soft_apply[k->dtype](k->y + t.at, r.weight, bits_at(&r.bits, t.index, t.n, r.p), t.n, scale,
                                          k->bypass);
        }
    }
}

void fd_softmax_forward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_environment caller = fd_enter_environment();
    softmax_forward(k, row, end);
    fd_leave_environment(caller);
    if (k->bypass)
        fd_fence();
}

static FD_APART void softmax_backward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_row_kernels *kernels = fd_kernels_in_use()->rows;
    const int several = k->n > FD_TILE;
    soft_row r;
    open_rows(&r, k);
    for (; row < end; row++) {
        double dot = 0;
        start_row(&r, row);
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            exp_of(&r, &t, k->log_sum[row]);
            dot += kernels->soft_dot[k->dtype](k->dy + t.at, r.weight, bits_at(&r.bits, t.index, t.n, r.p), t.n, fd_scale(r.p));
        }
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            if (several)
                exp_of(&r, &t, k->log_sum[row]);
            kernels->soft_grad[k->dtype](k->y + t.at, k->dy + t.at, r.weight, bits_at(&r.bits, t.index, t.n, r.p), t.n, fd_scale(r.p), dot,
                                         k->bypass);
        }
    }
}

void fd_softmax_backward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_environment caller = fd_enter_environment();
    softmax_backward(k, row, end);
    fd_leave_environment(caller);
    if (k->bypass)
        fd_fence();
}

/* -- dropout and the sum of its rows ------------------------------------------------------------------------------------- */

static FD_APART void row_sums_run(const fd_row_sums *k, int64_t first, int64_t end, double *sum)
{
    enum { FEW = 32 };  /* rows whose sum floats hold well */
    const int64_t item = ITEM[k->dtype];
    fd_bits bits;
    double part[FD_TILE + 16];  /* or floats */
    open_bits(&bits, k->mask, k->rows * k->n);
    for (int64_t j = 0; j < k->n; j += FD_TILE) {
        const size_t n = k->n - j < FD_TILE ? (size_t)(k->n - j) : FD_TILE;
        for (size_t i = 0; i < n; i++)
            sum[j + (int64_t)i] = 0;
        for (int64_t row = first; row < end; row += FEW) {
            memset(part, 0, sizeof part);
            for (int64_t r = row; r < row + FEW && r < end; r++) {
                const int64_t at = r * k->n + j;
                fd_kernels_in_use()->rows->apply_sum[k->dtype](k->y ? k->y + at * item : NULL, k->x + at * item, part,
                                                             bits_at(&bits, at, n, k->p), n, fd_scale(k->p), k->bypass);
            }
            for (size_t i = 0; i < n; i++)
                sum[j + (int64_t)i] += k->dtype == FD_F64 ? part[i] : (double)((const float *)part)[i];
        }
    }
}

void fd_row_sums_run(const fd_row_sums *k, int64_t first, int64_t end, double *sum)
{
    const fd_environment caller = fd_enter_environment();
    row_sums_run(k, first, end, sum);
    fd_leave_environment(caller);
    if (k->bypass)
        fd_fence();
}

static FD_APART void row_sums_total(const fd_row_sums *k, void *total, const double *sums, int64_t parts)
{
    for (int64_t j = 0; j < k->n; j++) {
        double sum = 0;
        for (int64_t part = 0; part < parts; part++)
            sum += sums[part * k->n + j];
        if (k->dtype == FD_F64)
            ((double *)total)[j] = sum;
        else
            ((float *)total)[j] = (float)sum;
    }
}

void fd_row_sums_total(const fd_row_sums *k, void *total, const double *sums, int64_t parts)
{
    const fd_environment caller = fd_enter_environment();
    row_sums_total(k, total, sums, parts);
    fd_leave_environment(caller);
}

/* -- max-norm ------------------------------------------------------------------------------------------------------------ */

static int64_t strips_of(const fd_max_norm *k)
{
    return k->inner == 1 ? 1 : (k->inner + FD_COLUMNS - 1) / FD_COLUMNS;
}

int64_t fd_max_norm_units(const fd_max_norm *k)
{
    return k->outer * strips_of(k);
}

static FD_APART void max_norm_run(const fd_max_norm *k, int64_t unit, int64_t end)
{
    const int64_t item = ITEM[k->dtype], strips = strips_of(k);
    for (; unit < end; unit++) {
        const int64_t strip = unit % strips, from = strip * FD_COLUMNS, left = k->inner - from;
        char *w = k->w + (unit / strips * k->n * k->inner + from) * item;
        if (k->inner == 1)
            fd_kernels_in_use()->rows->norm_row[k->dtype](w, (size_t)k->n, k->limit);
        else
            fd_kernels_in_use()->rows->norm_columns[k->dtype](w, (size_t)k->n, (size_t)k->inner,
                                                            (size_t)(left < FD_COLUMNS ? left : FD_COLUMNS), k->limit);
    }
}

void fd_max_norm_run(const fd_max_norm *k, int64_t unit, int64_t end)
{
    const fd_environment caller = fd_enter_environment();
    max_norm_run(k, unit, end);
    fd_leave_environment(caller);
}
