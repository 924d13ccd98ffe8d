/* From row kernels, which know one row, to arrays of rows. */
#include "rows.h"

#include <math.h>
#include <string.h>

#include "bits.h"
#include "dispatch.h"

enum { SERIAL_ROWS = 1 << 15 };  /* FD_SERIAL of rows: an element is some ten times the work of a dropped one */

static void share_rows(const fd_work *work, int64_t elements, int threads)
{
    fd_share(work, elements >= SERIAL_ROWS ? threads : 1);
}

static void losses(const void *job, int64_t first, int64_t end)
{
    const fd_losses *k = job;
    fd_kernels_in_use()->rows[k->dtype]->losses(k, first, end);
}

fd_work fd_losses_work(const fd_losses *job)
{
    return (fd_work){losses, job, job->rows, job->nontemporal};
}

void fd_run_losses(const fd_losses *job, int threads)
{
    const fd_work work = fd_losses_work(job);
    share_rows(&work, job->rows * job->n, threads);
}

/* -- softmax with dropout ------------------------------------------------------------------------------------------------ */

static const double NOTHING = -1e30;  /* a row whose largest score is below this has nothing to attend to */

/* Opens the bits of a mask of `size` elements that are asked for in order. */
static void open_bits(fd_bits *bits, fd_source mask, int64_t size)
{
    fd_bits_open(bits, mask, mask.offset + (uint64_t)(size - 1), 1);
}

static const uint64_t *bits_at(fd_bits *bits, int64_t index, size_t n, uint64_t threshold)
{
    return fd_bits_at(bits, bits->mask.offset + (uint64_t)index, n, threshold, (fd_prefetch){0});
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
    uint64_t threshold;
    const char *x, *bias;
    const uint8_t *allow;
    fd_bits bits;
    double weight[FD_TILE + 16];  /* or floats */
} soft_row;

static void open_rows(soft_row *r, const fd_softmax *k)
{
    r->k = k;
    r->p = -1;
    open_bits(&r->bits, k->mask, k->rows * k->n);
}

static void start_row(soft_row *r, int64_t row)
{
    r->row = row;
    if (r->p != r->k->p[row * r->k->p_step]) {
        r->p = r->k->p[row * r->k->p_step];
        r->threshold = fd_threshold(r->p);
    }
    r->x = r->k->x + row * r->k->n * fd_item_size(r->k->dtype);
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
        .at = (r->row * r->k->n + i) * fd_item_size(dtype),
        .x = r->x + i * fd_item_size(dtype),
        .bias = r->bias ? r->bias + i * (dtype == FD_F64 ? 8 : 4) : NULL,
        .allow = r->allow ? r->allow + i : NULL,
    };
}

static double exp_of(soft_row *r, const part *t, double shift)
{
    return fd_kernels_in_use()->rows[r->k->dtype]->soft_exp(r->weight, t->x, t->bias, t->allow, t->n, shift);
}

static void softmax_forward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_row_kernels *kernels = fd_kernels_in_use()->rows[k->dtype];
    const int several = k->n > FD_TILE;
    soft_row r;
    open_rows(&r, k);
    for (; row < end; row++) {
        double max = -INFINITY, sum = 0;
        start_row(&r, row);
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            const double high = kernels->row_max(t.x, t.bias, t.allow, t.n);
            max = high > max ? high : max;
        }
        max = max < NOTHING ? 0 : max;  /* beside which every exponential is 0, and so is their sum */
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            sum += exp_of(&r, &t, max);
        }
        const double scale = sum == 0 ? 0 : fd_scale(r.p) / sum;
        k->logsumexp[row] = sum == 0 ? INFINITY : max + log(sum);
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            if (several)
                exp_of(&r, &t, max);
            kernels->soft_apply(k->y + t.at, r.weight, bits_at(&r.bits, t.index, t.n, r.threshold), t.n, scale,
                                          k->nontemporal);
        }
    }
}

static void softmax_backward(const fd_softmax *k, int64_t row, int64_t end)
{
    const fd_row_kernels *kernels = fd_kernels_in_use()->rows[k->dtype];
    const int several = k->n > FD_TILE;
    soft_row r;
    open_rows(&r, k);
    for (; row < end; row++) {
        double dot = 0;
        start_row(&r, row);
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            exp_of(&r, &t, k->logsumexp[row]);
            dot += kernels->soft_dot(k->dy + t.at, r.weight, bits_at(&r.bits, t.index, t.n, r.threshold), t.n, fd_scale(r.p));
        }
        for (int64_t i = 0; i < k->n; i += FD_TILE) {
            const part t = part_at(&r, i);
            if (several)
                exp_of(&r, &t, k->logsumexp[row]);
            const uint64_t *bits = bits_at(&r.bits, t.index, t.n, r.threshold);
            kernels->soft_grad(k->y + t.at, k->dy + t.at, r.weight, bits, t.n, fd_scale(r.p), dot, k->nontemporal);
        }
    }
}

static void softmax(const void *job, int64_t first, int64_t end)
{
    const fd_softmax *k = job;
    (k->dy ? softmax_backward : softmax_forward)(k, first, end);
}

fd_work fd_softmax_work(const fd_softmax *job)
{
    return (fd_work){softmax, job, job->rows, job->nontemporal};
}

void fd_run_softmax(const fd_softmax *job, int threads)
{
    const fd_work work = fd_softmax_work(job);
    share_rows(&work, job->rows * job->n, threads);
}

/* -- dropout and the sum of its rows ------------------------------------------------------------------------------------- */

static void sum_rows(const fd_row_sums *k, int64_t first, int64_t end, double *sum)
{
    enum { MAX_ROWS = 32 };  /* a sum of more loses digits of a float */
    const int64_t item = fd_item_size(k->dtype);
    const uint64_t threshold = fd_threshold(k->p);
    fd_bits bits;
    double part[FD_TILE + 16];  /* or floats */
    open_bits(&bits, k->mask, k->rows * k->n);
    for (int64_t j = 0; j < k->n; j += FD_TILE) {
        const size_t n = k->n - j < FD_TILE ? (size_t)(k->n - j) : FD_TILE;
        for (size_t i = 0; i < n; i++)
            sum[j + (int64_t)i] = 0;
        for (int64_t row = first; row < end; row += MAX_ROWS) {
            memset(part, 0, sizeof part);
            for (int64_t r = row; r < row + MAX_ROWS && r < end; r++) {
                const int64_t at = r * k->n + j;
                fd_kernels_in_use()->rows[k->dtype]->apply_sum(k->y ? k->y + at * item : NULL, k->x + at * item, part,
                                                               bits_at(&bits, at, n, threshold), n, fd_scale(k->p), k->nontemporal);
            }
            for (size_t i = 0; i < n; i++)
                sum[j + (int64_t)i] += k->dtype == FD_F64 ? part[i] : (double)((const float *)part)[i];
        }
    }
}

/* Fixed by the shape, so that a sum has the same bits on any number of threads. */
int64_t fd_row_sums_parts(int64_t rows, int64_t n)
{
    enum { MAX_PARTS = 64, MIN_ROWS = 32, MAX_SUMS = 1 << 16 };
    int64_t parts = rows / MIN_ROWS;
    parts = parts < MAX_SUMS / n ? parts : MAX_SUMS / n;
    parts = parts < MAX_PARTS ? parts : MAX_PARTS;
    return parts > 1 ? parts : 1;
}

static void row_sums(const void *job, int64_t part, int64_t end)
{
    const fd_row_sums *k = job;
    const int64_t parts = fd_row_sums_parts(k->rows, k->n);
    for (; part < end; part++)
        sum_rows(k, k->rows * part / parts, k->rows * (part + 1) / parts, k->scratch + part * k->n);
}

static void total_of_parts(const void *job, int64_t first, int64_t end)
{
    const fd_row_sums *k = job;
    const int64_t parts = fd_row_sums_parts(k->rows, k->n);
    for (int64_t j = first; j < end; j++) {
        double sum = 0;
        for (int64_t part = 0; part < parts; part++)
            sum += k->scratch[part * k->n + j];
        if (k->dtype == FD_F64)
            ((double *)k->total)[j] = sum;
        else
            ((float *)k->total)[j] = (float)sum;
    }
}

fd_work fd_row_sums_work(const fd_row_sums *job)
{
    return (fd_work){row_sums, job, fd_row_sums_parts(job->rows, job->n), job->nontemporal};
}

fd_work fd_row_sums_total(const fd_row_sums *job)
{
    return (fd_work){total_of_parts, job, job->n, 0};
}

void fd_run_row_sums(const fd_row_sums *job, int threads)
{
    const fd_work work = fd_row_sums_work(job), total = fd_row_sums_total(job);
    share_rows(&work, job->rows * job->n, threads);
    fd_share(&total, 1);
}

/* -- max-norm ------------------------------------------------------------------------------------------------------------ */

static int64_t strips_of(const fd_max_norm *k)
{
    return k->inner == 1 ? 1 : (k->inner + FD_COLUMNS - 1) / FD_COLUMNS;
}

static void max_norm(const void *job, int64_t unit, int64_t end)
{
    const fd_max_norm *k = job;
    const int64_t item = fd_item_size(k->dtype), strips = strips_of(k);
    for (; unit < end; unit++) {
        const int64_t strip = unit % strips, from = strip * FD_COLUMNS, left = k->inner - from;
        char *w = k->w + (unit / strips * k->n * k->inner + from) * item;
        if (k->inner == 1)
            fd_kernels_in_use()->rows[k->dtype]->norm_row(w, (size_t)k->n, k->limit);
        else
            fd_kernels_in_use()->rows[k->dtype]->norm_columns(w, (size_t)k->n, (size_t)k->inner,
                                                              (size_t)(left < FD_COLUMNS ? left : FD_COLUMNS), k->limit);
    }
}

fd_work fd_max_norm_work(const fd_max_norm *job)
{
    return (fd_work){max_norm, job, job->outer * strips_of(job), 0};
}

void fd_run_max_norm(const fd_max_norm *job, int threads)
{
    const fd_work work = fd_max_norm_work(job);
    share_rows(&work, job->outer * job->n * job->inner, threads);
}
