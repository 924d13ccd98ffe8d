/* Softmax with dropout, forward and back; dropout with the sums of its rows. */
#include "check.h"

typedef struct {
    fd_softmax k;
    matrix x, y, dy;
    double *x_values, *dy_values, *bias_of, *p;
    uint8_t *allowed;       /* bias_of and allowed: of every score, by their steps */
    void *bias;
    uint8_t *allow;
} softmax_case;

/* Steps of an operand that is broadcast along some axes, the last axis consecutive; returns its elements. */
static int64_t broadcast(int64_t *step, const fd_softmax *k, int64_t item)
{
    int64_t size = k->n + (one_in(3) ? below(5) : 0);
    int64_t last = 0;
    for (int a = k->ndim - 1; a >= 0; a--) {
        step[a] = one_in(3) ? 0 : size * item;
        if (step[a]) {
            last += size * (k->shape[a] - 1);
            size *= k->shape[a];
        }
    }
    return last + k->n;
}

static int64_t place(const int64_t *step, const fd_softmax *k, int64_t row)
{
    int64_t at = 0;
    for (int a = k->ndim - 1; a >= 0; a--) {
        at += row % k->shape[a] * step[a];
        row /= k->shape[a];
    }
    return at;
}

static softmax_case draw_case(enum fd_dtype dtype)
{
    const int64_t wide = dtype == FD_F64 ? 8 : 4;
    softmax_case c = {0};
    fd_softmax *k = &c.k;
    k->dtype = dtype;
    k->n = draw_length(one_in(8) ? 9000 : 300);
    k->ndim = (int)below(4);
    k->rows = 1;
    for (int a = 0; a < k->ndim; a++)
        k->rows *= k->shape[a] = 1 + below(k->n > 300 ? 2 : 4);
    k->mask = draw_mask((uint64_t)(k->rows * k->n));
    k->p_step = one_in(3);
    k->p = c.p = memory((size_t)(k->p_step ? k->rows : 1) * sizeof *c.p);
    for (int64_t i = 0; i < (k->p_step ? k->rows : 1); i++)
        c.p[i] = draw_p(&k->mask);

    c.x = new_rows(dtype, k->rows, k->n, 1);
    c.dy = new_rows(dtype, k->rows, k->n, 1);
    for (int64_t row = 0; row < k->rows; row++) {
        const double low = one_in(12) ? -2e30 : 0;
        for (int64_t i = 0; i < k->n; i++) {
            put(dtype, element(&c.x, row, i), one_in(30) ? -INFINITY : (row % 3 ? 2 : 15) * draw_normal() + (row % 5 ? 0 : 100) + low);
            put(dtype, element(&c.dy, row, i), draw_normal());
        }
    }
    c.x_values = values(&c.x);
    c.dy_values = values(&c.dy);
    k->x = c.x.data;
    if (one_in(2)) {
        const int64_t size = broadcast(k->bias_step, k, wide);
        k->bias = c.bias = memory((size_t)(size * wide));
        for (int64_t i = 0; i < size; i++)
            put(wide == 8 ? FD_F64 : FD_F32, (char *)c.bias + i * wide, one_in(9) ? -INFINITY : draw_normal());
    }
    if (one_in(2)) {
        const int64_t size = broadcast(k->allow_step, k, 1);
        c.allow = memory((size_t)size);
        k->allow = (const char *)c.allow;
        const int none = one_in(8);
        for (int64_t i = 0; i < size; i++)
            c.allow[i] = !none && !one_in(4);
    }
    k->logsumexp = memory((size_t)k->rows * sizeof *k->logsumexp);
    return c;
}

/* log(softmax) of a row, the largest score in *size; *logsumexp is inf where nothing is allowed, or all is below -1e30. */
static void scores_of(const softmax_case *c, int64_t row, real *log_p, real *logsumexp, real *size)
{
    const fd_softmax *k = &c->k;
    const enum fd_dtype wide = k->dtype == FD_F64 ? FD_F64 : FD_F32;
    real max = -INFINITY, sum = 0;
    *size = 0;
    for (int64_t i = 0; i < k->n; i++) {
        log_p[i] = c->x_values[row * k->n + i];
        if (k->bias)
            log_p[i] += get(wide, k->bias + place(k->bias_step, k, row) + i * ITEM[wide]);
        if (k->allow && !k->allow[place(k->allow_step, k, row) + i])
            log_p[i] = -INFINITY;
        max = log_p[i] > max ? log_p[i] : max;
        if (log_p[i] != -INFINITY && fabsl(log_p[i]) > *size)
            *size = fabsl(log_p[i]);
    }
    for (int64_t i = 0; i < k->n && max >= -1e30; i++)
        sum += expl(log_p[i] - max);
    *logsumexp = sum == 0 ? INFINITY : max + logl(sum);
    for (int64_t i = 0; i < k->n; i++)
        log_p[i] = sum == 0 ? -INFINITY : log_p[i] - *logsumexp;
}

/* In one part, then again in several, last first, which must give the same bits. */
static void run_twice(softmax_case *c)
{
    const fd_softmax *k = &c->k;
    const size_t doubles = (size_t)k->rows * sizeof(double);
    char *before = bytes_of(&c->y), *after;
    double *logsumexp = memory(doubles);
    const fd_work work = fd_softmax_work(k);
    fd_work_on(&work, 0, k->rows);
    check_gaps(&c->y, before, "softmax");
    after = bytes_of(&c->y);
    memcpy(logsumexp, k->logsumexp, doubles);
    memcpy(c->y.owner, before, c->y.bytes);
    run_in_parts(&work);
    CHECK(!memcmp(after, c->y.owner, c->y.bytes) && !memcmp(logsumexp, k->logsumexp, doubles),
          "softmax, dtype %d, %" PRId64 " scores: rows in several parts differ", (int)k->dtype, k->n);
    free(before), free(after), free(logsumexp);
}

static void check_rows(const softmax_case *c, int backward)
{
    const fd_softmax *k = &c->k;
    const size_t bytes = (size_t)k->n * sizeof(real);
    real *log_p = memory(bytes), *gradient = memory(bytes), logsumexp, size;
    for (int64_t row = 0; row < k->rows; row++) {
        const double p = c->p[row * k->p_step], scale = fd_scale(p);
        real dot = 0, largest = 0, high = 0;
        scores_of(c, row, log_p, &logsumexp, &size);
        const real error = (16 + size) * unit(k->dtype);  /* of a probability, relative: its score is rounded */
        CHECK(k->logsumexp[row] == (double)logsumexp || fabsl(k->logsumexp[row] - logsumexp) <= error,
              "softmax, dtype %d, %" PRId64 " scores: log(sum) is %.15g, not %.15Lg", (int)k->dtype, k->n, k->logsumexp[row], logsumexp);
        for (int64_t i = 0; i < k->n; i++) {
            gradient[i] = kept(&k->mask, (uint64_t)(row * k->n + i), p) ? c->dy_values[row * k->n + i] * (real)scale : 0;
            dot += expl(log_p[i]) * gradient[i];
            largest = fabsl(gradient[i]) > largest ? fabsl(gradient[i]) : largest;
            high = expl(log_p[i]) > high ? expl(log_p[i]) : high;
        }
        for (int64_t i = 0; i < k->n; i++) {
            const double got = get(k->dtype, element(&c->y, row, i));
            const int is_kept = kept(&k->mask, (uint64_t)(row * k->n + i), p);
            const real want = backward ? expl(log_p[i]) * (gradient[i] - dot) : is_kept ? expl(log_p[i]) * scale : 0;
            CHECK(close_to(k->dtype, got, (double)want, (double)(error * high * (backward ? largest : is_kept ? scale : 0))),
                  "softmax, dtype %d, %s: score %" PRId64 " of %" PRId64 " is %.9g, not %.9Lg", (int)k->dtype, backward ? "backward" : "forward", i,
                  k->n, got, want);
        }
    }
    free(log_p), free(gradient);
}

void check_softmax(enum fd_dtype dtype)
{
    softmax_case c = draw_case(dtype);
    fd_softmax *k = &c.k;
    const int in_place = one_in(4);
    char *x = bytes_of(&c.x);
    c.y = in_place ? c.x : new_rows(dtype, k->rows, k->n, 1);
    k->y = c.y.data;
    k->nontemporal = !in_place && one_in(2);
    run_twice(&c);
    check_rows(&c, 0);

    memcpy(c.x.owner, x, c.x.bytes);
    k->dy = c.dy.data;
    if (in_place) {
        c.y = c.dy;
        k->y = c.y.data;
    }
    run_twice(&c);
    check_rows(&c, 1);
    if (!in_place)
        free(c.y.owner);
    free(x), free(c.x.owner), free(c.dy.owner), free(c.x_values), free(c.dy_values), free(c.bias), free(c.allow), free(c.p);
    free((void *)k->mask.stored), free(k->logsumexp);
}

/* y to the bit, and its sums. */
void check_row_sums(enum fd_dtype dtype)
{
    const int64_t n = draw_length(one_in(8) ? 9000 : 300), rows = 1 + below(n > 300 ? 3 : 80);
    const fd_source mask = draw_mask((uint64_t)(rows * n));
    const double p = draw_p(&mask), scale = rounded(dtype, fd_scale(p));
    const int in_place = one_in(4), none = !in_place && one_in(3);
    matrix x = new_rows(dtype, rows, n, 1), y = in_place ? x : new_rows(dtype, rows, n, 1);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < n; i++)
            put(dtype, element(&x, row, i), draw_normal());
    fd_row_sums k = {.dtype = dtype, .rows = rows, .n = n, .x = x.data, .y = none ? NULL : y.data, .p = p,
                     .mask = mask, .nontemporal = !in_place && one_in(2)};
    double *x_values = values(&x), *sums = memory((size_t)(n * fd_row_sums_parts(rows, n)) * sizeof *sums);
    char *before = bytes_of(&y), *total = memory((size_t)n * sizeof(double));
    const enum fd_dtype wide = dtype == FD_F64 ? FD_F64 : FD_F32;
    k.scratch = sums, k.total = total;
    const fd_work work = fd_row_sums_work(&k), rest = fd_row_sums_total(&k);
    run_in_parts(&work), run_in_parts(&rest);
    for (int64_t i = 0; i < n; i++) {
        double want = 0, size = 0;
        for (int64_t row = 0; row < rows; row++) {
            const double value = kept(&k.mask, (uint64_t)(row * n + i), p) ? rounded(dtype, x_values[row * n + i] * scale) : 0;
            char stored[8];
            want += value;
            size += fabs(value);
            put(dtype, stored, value);
            CHECK(none || !memcmp(stored, element(&y, row, i), (size_t)ITEM[dtype]),
                  "row sums, dtype %d: element %" PRId64 " of row %" PRId64, (int)dtype, i, row);
        }
        const double got = get(wide, total + i * ITEM[wide]);
        CHECK(fabs(got - want) <= 16 * unit(dtype) * size, "row sums, dtype %d: sum %" PRId64 " of %" PRId64 " is %.9g, not %.9g",
              (int)dtype, i, n, got, want);
    }
    check_gaps(&y, before, "row sums");
    if (!in_place)
        free(y.owner);
    free(x.owner), free(x_values), free(sums), free(total), free(before), free((void *)k.mask.stored);
}

void check_max_norm(enum fd_dtype dtype)
{
    const int64_t outer = 1 + below(3), inner = one_in(2) ? 1 : draw_length(200), n = draw_length(inner == 1 && one_in(4) ? 5000 : inner > 20 ? 40 : 300);
    const double power = one_in(2) ? 1 : dtype == FD_F64 ? (one_in(2) ? 1e140 : 1e-140) : dtype == FD_F16 ? 1e-3 : one_in(2) ? 1e18 : 1e-18;
    matrix w = new_rows(dtype, outer * n, inner, 1);
    for (int64_t row = 0; row < outer * n; row++)
        for (int64_t i = 0; i < inner; i++)
            put(dtype, element(&w, row, i), power * draw_normal());
    fd_max_norm k = {.dtype = dtype, .w = w.data, .outer = outer, .n = n, .inner = inner,
                     .limit = one_in(8) ? 0 : power * sqrt((double)n) * (one_in(3) ? 100 : 0.5 + draw_uniform())};
    double *x = values(&w);
    char *before = bytes_of(&w);
    const fd_work work = fd_max_norm_work(&k);
    run_in_parts(&work);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t j = 0; j < inner; j++) {
            real squares = 0;
            for (int64_t i = 0; i < n; i++)
                squares += (real)x[(o * n + i) * inner + j] * x[(o * n + i) * inner + j];
            const real norm = sqrtl(squares), least = norm <= k.limit ? 1 : k.limit / norm;
            for (int64_t i = 0; i < n; i++) {
                const double old = x[(o * n + i) * inner + j], got = get(dtype, element(&w, o * n + i, j)), want = (double)(old * least);
                CHECK(least == 1 && norm < k.limit * (1 - 16 * unit(dtype)) ? got == old : close_to(dtype, got, want, 16 * unit(dtype) * fabs(want)),
                      "max-norm, dtype %d, [%" PRId64 ", %" PRId64 ", %" PRId64 "]: element %" PRId64 " of vector %" PRId64 " is %.9g, not %.9g",
                      (int)dtype, outer, n, inner, i, o * inner + j, got, want);
            }
        }
    check_gaps(&w, before, "max-norm");
    free(w.owner), free(x), free(before);
}
