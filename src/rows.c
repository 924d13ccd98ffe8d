/* From row kernels, which know one row, to arrays of rows. */
#include "rows.h"

#include <string.h>

#include "dispatch.h"
#include "stream.h"

void fd_losses_run(const fd_losses *k, int64_t first, int64_t end)
{
    fd_kernels_in_use->rows->losses[k->dtype](k, first, end);
    if (k->bypass)
        fd_fence();
}

/* -- softmax with dropout ------------------------------------------------------------------------------------------------ */

static const int64_t ITEM[FD_DTYPES] = {[FD_F32] = 4, [FD_F64] = 8, [FD_F16] = 2, [FD_BF16] = 2};

/* The bits of a tile of the mask, made once for all the rows that lie in it. */
typedef struct {
    uint64_t first, count;  /* elements of the mask that `words` holds */
    double p;
    uint64_t words[FD_TILE / 64 + 1];
    uint64_t shifted[FD_TILE / 64];
} tile;

/* Bits of elements index .. index + n - 1, n <= FD_TILE, from bit 0 on. */
static const uint64_t *bits_of(tile *t, const fd_softmax *k, uint64_t index, size_t n, double p)
{
    uint64_t at = index - t->first;
    if (at >= t->count || n > t->count - at || t->p != p) {
        const uint64_t left = (uint64_t)k->rows * (uint64_t)k->n - index;
        fd_source source = k->mask;
        source.offset += index;
        t->first = index;
        t->count = left < FD_TILE ? left : FD_TILE;
        t->p = p;
        t->words[(t->count - 1) / 64] = 0;
        fd_keep_bits((uint8_t *)t->words, source, p, (int64_t)t->count);
        at = 0;
    }
    if (at % 64 == 0)
        return t->words + at / 64;
    const unsigned shift = at % 64;
    for (size_t i = 0; i < (n + 63) / 64; i++)
        t->shifted[i] = t->words[at / 64 + i] >> shift | t->words[at / 64 + i + 1] << (64 - shift);
    return t->shifted;
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

void fd_softmax_forward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_row_kernels *kernels = fd_kernels_in_use->rows;
    const int64_t item = ITEM[k->dtype], wide = k->dtype == FD_F64 ? 8 : 4;
    tile t;
    t.count = t.words[FD_TILE / 64] = 0;
    for (; row < end; row++) {
        const char *x = k->x + row * k->n * item, *bias = operand_row(k->bias, k->bias_step, k, row);
        const char *allow = operand_row(k->allow, k->allow_step, k, row);
        const double p = k->p[row * k->p_step];
        k->log_sum[row] = kernels->soft_sum[k->dtype](x, bias, (const uint8_t *)allow, (size_t)k->n);
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const size_t n = k->n - i < FD_TILE ? (size_t)(k->n - i) : FD_TILE;
            const uint64_t *bits = bits_of(&t, k, (uint64_t)(row * k->n + i), n, p);
            kernels->soft_apply[k->dtype](k->y + (row * k->n + i) * item, x + i * item, bias ? bias + i * wide : NULL,
                                          allow ? (const uint8_t *)allow + i : NULL, bits, n, k->log_sum[row], fd_scale(p));
        }
    }
}

void fd_softmax_backward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_row_kernels *kernels = fd_kernels_in_use->rows;
    const int64_t item = ITEM[k->dtype], wide = k->dtype == FD_F64 ? 8 : 4;
    tile t;
    t.count = t.words[FD_TILE / 64] = 0;
    for (; row < end; row++) {
        const char *x = k->x + row * k->n * item, *bias = operand_row(k->bias, k->bias_step, k, row);
        const char *allow = operand_row(k->allow, k->allow_step, k, row);
        const double p = k->p[row * k->p_step], scale = fd_scale(p), log_sum = k->log_sum[row];
        double dot = 0;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t i = 0; i < k->n; i += FD_TILE) {
                const size_t n = k->n - i < FD_TILE ? (size_t)(k->n - i) : FD_TILE;
                const int64_t at = (row * k->n + i) * item;
                const uint64_t *bits = bits_of(&t, k, (uint64_t)(row * k->n + i), n, p);
                const char *b = bias ? bias + i * wide : NULL;
                const uint8_t *m = allow ? (const uint8_t *)allow + i : NULL;
                if (pass == 0)
                    dot += kernels->soft_dot[k->dtype](k->dy + at, x + i * item, b, m, bits, n, log_sum, scale);
                else
                    kernels->soft_grad[k->dtype](k->y + at, k->dy + at, x + i * item, b, m, bits, n, log_sum, scale, dot);
            }
    }
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

void fd_max_norm_run(const fd_max_norm *k, int64_t unit, int64_t end)
{
    const int64_t item = ITEM[k->dtype], strips = strips_of(k);
    for (; unit < end; unit++) {
        const int64_t strip = unit % strips, from = strip * FD_COLUMNS, left = k->inner - from;
        char *w = k->w + (unit / strips * k->n * k->inner + from) * item;
        if (k->inner == 1)
            fd_kernels_in_use->rows->norm_row[k->dtype](w, (size_t)k->n, k->limit);
        else
            fd_kernels_in_use->rows->norm_columns[k->dtype](w, (size_t)k->n, (size_t)k->inner,
                                                            (size_t)(left < FD_COLUMNS ? left : FD_COLUMNS), k->limit);
    }
}
