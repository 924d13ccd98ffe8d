/* Several masks on one array: to the bit, by the formulas of fastdrop.h. */
#include "check.h"

/* Element `at` of a row, given which samples keep it.  As in check_array.c, a double after each step rounded to float is
 * what floats give. */
static double expected_of(const fd_samples *k, const uint8_t *kept_by, const char *x, int mean)
{
    const enum fd_dtype dtype = k->dtype;
    double sum = 0;
    int any = 0;
    for (int64_t s = 0; s < k->samples; s++) {
        const double weight = mean && !k->p_step ? 1 : rounded(dtype, fd_scale(k->p[s * k->p_step]));
        any |= kept_by[s];
        if (kept_by[s])
            sum = rounded(dtype, sum + (mean ? weight : rounded(dtype, get(dtype, x + s * k->x_sample) * weight)));
    }
    if (!mean)
        return sum;
    const double factor = rounded(dtype, (k->p_step ? 1 : fd_scale(k->p[0])) / (double)k->samples);
    return any ? get(dtype, x) * rounded(dtype, sum * factor) : 0;
}

static void run(fd_samples *k, int64_t parts)
{
    k->parts = parts;
    k->scratch = memory(fd_samples_scratch(k) * (size_t)parts);
    const fd_work work = fd_samples_work(k);
    run_in_parts(&work);
    free(k->scratch);
}

static void check_element(const fd_samples *k, const uint8_t *kept_by, const char *x, const char *got, int mean)
{
    char want[8];
    put(k->dtype, want, expected_of(k, kept_by, x, mean));
    CHECK(!memcmp(want, got, (size_t)ITEM[k->dtype]), "%s of %" PRId64 " samples, dtype %d: %.9g, not %.9g", mean ? "mean" : "sum",
          k->samples, (int)k->dtype, get(k->dtype, got), get(k->dtype, want));
}

void check_samples(enum fd_dtype dtype, int mean)
{
    const int64_t n = draw_length(one_in(8) ? 9000 : 300), rows = 1 + below(n > 300 ? 2 : 5), samples = 1 + below(one_in(4) ? 20 : 5);
    const int in_place = mean && one_in(4), any_bits = mean && one_in(2);
    matrix x = new_rows(dtype, mean ? rows : rows * samples, n, 0), y = in_place ? x : new_rows(dtype, rows, n, 0);
    for (int64_t row = 0; !any_bits && row < x.rows; row++)
        for (int64_t i = 0; i < n; i++)
            put(dtype, element(&x, row, i), draw_normal());
    const int64_t m_row = one_in(5) ? 0 : n + (one_in(4) ? below(9) : 0), m_sample = one_in(8) ? 0 : m_row * (rows - 1) + n;
    fd_samples k = {.dtype = dtype, .mean = mean, .samples = samples, .rows = rows, .n = n, .y = y.data, .x = x.data, .y_row = y.step, .x_row = x.step,
                    .x_sample = mean ? 0 : rows * x.step, .m_row = m_row, .m_sample = m_sample, .p_step = one_in(2),
                    .mask = draw_mask((uint64_t)(m_sample * (samples - 1) + m_row * (rows - 1) + n))};
    double *p = memory((size_t)(k.p_step ? samples : 1) * sizeof *p);
    for (int64_t s = 0; s < (k.p_step ? samples : 1); s++)
        p[s] = draw_p(&k.mask);
    k.p = p;
    uint8_t *kept_by = memory((size_t)samples);
    char *before = bytes_of(&y), *x_before = bytes_of(&x);
    run(&k, 1 + below(4));
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < n; i++) {
            for (int64_t s = 0; s < samples; s++)
                kept_by[s] = (uint8_t)kept(&k.mask, (uint64_t)(s * m_sample + row * m_row + i), p[s * k.p_step]);
            check_element(&k, kept_by, x_before + ((char *)element(&x, row, i) - x.owner), element(&y, row, i), mean);
        }
    check_gaps(&y, before, "samples");
    if (!in_place)
        free(y.owner);
    free(x.owner), free(p), free(kept_by), free(before), free(x_before), free((void *)k.mask.stored);
}

/* So large that the mean is stored past the cache; its rows share their mask, and every seventh and the last is looked at. */
void check_large_mean(enum fd_dtype dtype)
{
    const int64_t n = 4096 + 100, rows = ((int64_t)8 << 20) / ITEM[dtype] / n + 1, samples = 2;
    const double p = 0.3;
    matrix x = new_rows(dtype, rows, n, 1), y = new_rows(dtype, rows, n, 1);
    fd_samples k = {.dtype = dtype, .mean = 1, .mask = {1, 2, 77, NULL}, .y = y.data, .x = x.data, .p = &p, .samples = samples, .rows = rows, .n = n,
                          .y_row = y.step, .x_row = x.step, .m_sample = n};
    uint8_t *kept_by = memory((size_t)(samples * n));
    for (int64_t i = 0; i < n; i++)
        for (int64_t s = 0; s < samples; s++)
            kept_by[i * samples + s] = (uint8_t)kept(&k.mask, (uint64_t)(s * n + i), p);
    run(&k, 1);
    for (int64_t row = 0; row < rows; row += row + 7 < rows || row == rows - 1 ? 7 : rows - 1 - row)
        for (int64_t i = 0; i < n; i++)
            check_element(&k, kept_by + i * samples, element(&x, row, i), element(&y, row, i), 1);
    free(x.owner), free(y.owner), free(kept_by);
}
