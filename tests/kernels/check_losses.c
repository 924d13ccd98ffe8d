/* Losses on rows of logits, with their gradients, against the formulas of rows.h in `real`.
 *
 * With p, q the softmaxes and r = log(p / q), every sum here is of terms that have one sign or do not cancel: KL is the sum of
 * p (r + exp(-r) - 1), since the q - p that is added sums to 0; p - q is -p expm1(-r).  A class that both exclude (logit
 * -inf) counts for nothing; one that a alone allows makes KL infinite, and the gradient of an infinite divergence is 0.
 * Where one of the two allows no class at all KL(none || q) is 0, Jensen-Shannon log(2), the others infinite, all gradients
 * 0.  A NaN makes the row's loss and gradients NaN. */
#include "check.h"

/* How much of a row's largest gradient, or of its loss, may be wrong, in last bits.  Most rows of floats stay
 * below the 9 of 1e-6; two classes and plain C, which rounds products before it adds, need more. */
static real bits_of(enum fd_dtype dtype)
{
    return dtype == FD_F64 ? 512 : 64;
}

typedef struct {
    fd_losses k;
    matrix a, b, da, db, target;
    double *a_values, *b_values, *t_values;
    int64_t *label;
    uint8_t *skip;
} losses_case;

typedef struct {
    real loss, kl;
    real error, kl_error;  /* of them, beyond the few last bits of each */
    real *da, *db;
    real grad_error;
} row_result;

/* -- the formulas ---------------------------------------------------------------------------------------------------- */

/* log(softmax(x * heat)) into log_p; returns whether any class is allowed.  log p of a class that dominates is what the others
 * have. */
static int log_softmax(real *log_p, const double *x, int64_t n, double heat)
{
    int64_t top = 0;
    real rest = 0;
    for (int64_t i = 1; i < n; i++)
        top = x[i] > x[top] ? i : top;
    if (x[top] == -INFINITY) {
        for (int64_t i = 0; i < n; i++)
            log_p[i] = -INFINITY;
        return 0;
    }
    for (int64_t i = 0; i < n; i++)
        rest += i == top ? 0 : expl((x[i] - (real)x[top]) * heat);
    for (int64_t i = 0; i < n; i++)
        log_p[i] = (x[i] - (real)x[top]) * heat - log1pl(rest);
    return 1;
}

/* The cross entropy of labels y: the loss, and gradient += share * its gradient by the logits; largest: of that. */
static real cross_entropy(const losses_case *c, int64_t row, const real *log_p, real share, real *gradient, real *largest)
{
    const fd_losses *k = &c->k;
    const real smooth = k->smoothing;
    real loss = 0, mass = 0;
    for (int sweep = 0; sweep < 2; sweep++)
        for (int64_t i = 0; i < k->n; i++) {
            const real y = (k->label ? k->label[row] == i : c->t_values[row * k->n + i]) * (1 - smooth) + smooth / k->n;
            if (sweep) {
                /* mass * p - y; by 1 - p where p may be nearly 1 */
                const real g = share * (log_p[i] > -1 ? mass * expm1l(log_p[i]) + (mass - y) : mass * expl(log_p[i]) - y);
                gradient[i] += g;
                *largest = fmaxl(*largest, fabsl(g));
            } else {
                loss -= y == 0 ? 0 : y * log_p[i];
                mass += y;
            }
        }
    return loss;
}

static real times(real p, real x)
{
    return p == 0 ? 0 : p * x;
}

/* The divergence of p and q that losses.def describes; gradients added with their weight. */
static real divergence(const fd_loss_facts *f, const real *log_p, const real *log_q, int64_t n, real weight, real *da, real *db)
{
    const real forward = f->forward, reverse = f->reverse, middle = f->middle;
    real loss = 0, p_mean = 0, q_mean = 0;
    int classes_p = 0, classes_q = 0;
    for (int64_t i = 0; i < n; i++) {
        classes_p |= log_p[i] != -INFINITY;
        classes_q |= log_q[i] != -INFINITY;
    }
    if (!classes_p || !classes_q)
        return classes_p == classes_q ? 0 : (classes_p ? forward : reverse) > 0 ? INFINITY : middle * logl(2);
    for (int64_t i = 0; i < n; i++) {
        const int no_p = log_p[i] == -INFINITY, no_q = log_q[i] == -INFINITY;
        if ((no_q && !no_p && forward > 0) || (no_p && !no_q && reverse > 0))
            return INFINITY;
    }
    for (int sweep = 0; sweep < 2; sweep++)
        for (int64_t i = 0; i < n; i++) {
            const real p = expl(log_p[i]), q = expl(log_q[i]), r = log_p[i] == log_q[i] ? 0 : log_p[i] - log_q[i];
            const real less = r > 0 ? -times(p, expm1l(-r)) : times(q, expm1l(r));  /* p - q */
            real p_log = r, q_log = -r;
            if (middle > 0) {  /* log(p / m), log(q / m), m = (p + q) / 2 */
                const real larger = -log1pl(expm1l(-fabsl(r)) / 2);
                p_log = larger + (r < 0 ? r : 0), q_log = larger - (r > 0 ? r : 0);
            }
            if (!sweep) {
                p_mean += times(p, p_log);
                q_mean += times(q, q_log);
                if (middle > 0)
                    loss += middle / 2 * (times(p, p_log) + times(q, q_log));
                else if (forward == reverse)
                    loss += forward * times(less, r);
                else
                    loss += times(forward, p == 0 ? q : times(p, r + expm1l(-r))) + times(reverse, q == 0 ? p : times(q, expm1l(r) - r));
            } else {
                da[i] += weight * (times(forward + middle / 2, times(p, p_log - p_mean)) + times(reverse, less));
                db[i] += weight * (times(reverse + middle / 2, times(q, q_log - q_mean)) - times(forward, less));
            }
        }
    return loss;
}

/* How far the log-ratios of the classes are apart, 1 at least: where that is more than 8, in Jensen-Shannon's gradients and in
 * doubles, which have no wider sums, as many last bits of the largest probability may be lost from what is small beside it. */
static real span_of(const real *log_p, const real *log_q, int64_t n)
{
    real span = 1;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(log_p[i]) && isfinite(log_q[i]))
            span = fmaxl(span, fabsl(log_p[i] - log_q[i]));
    return span;
}

static void row_of(const losses_case *c, int64_t row, row_result *r)
{
    const fd_losses *k = &c->k;
    const fd_loss_facts *f = &fd_loss_table[k->op];
    const int64_t n = k->n;
    const real share = (real)k->weight * k->inv_temperature;
    real entropy = 0;  /* the largest gradient of that part, which the other may nearly take off */
    real *log_p = memory((size_t)n * sizeof *log_p), *log_q = memory((size_t)n * sizeof *log_q);
    memset(r->da, 0, (size_t)n * sizeof *r->da);
    memset(r->db, 0, (size_t)n * sizeof *r->db);
    r->loss = r->kl = r->error = r->kl_error = r->grad_error = 0;
    int broken = 0;
    for (int64_t i = row * n; i < (row + 1) * n; i++)
        broken |= isnan(c->a_values[i]) || (c->b_values && isnan(c->b_values[i]));
    const int skipped = k->skip && k->skip[row];
    if (broken && !skipped) {
        r->loss = NAN, r->kl = NAN;
        for (int64_t i = 0; i < n; i++)
            r->da[i] = NAN, r->db[i] = NAN;
    } else if (!skipped) {
        const int some = log_softmax(log_p, c->a_values + row * n, n, k->inv_temperature);
        if (f->sides == 1) {
            if (some)
                r->loss = cross_entropy(c, row, log_p, share, r->da, &entropy);
        } else if (log_softmax(log_q, c->b_values + row * n, n, k->inv_temperature) || some) {
            const real factor = f->labels ? (real)k->alpha : 1;
            real *kl = f->labels ? &r->kl : &r->loss;
            *kl = divergence(f, log_p, log_q, n, share * factor, r->da, r->db);
            const real span = span_of(log_p, log_q, n);
            if (span > 8 || f->middle > 0 || k->dtype == FD_F64)
                r->grad_error = 4 * span * share * factor;
            if (span > 8 || k->dtype == FD_F64)
                *(f->labels ? &r->kl_error : &r->error) = span;
            if (f->labels)
                r->loss = (cross_entropy(c, row, log_p, share / 2, r->da, &entropy) + cross_entropy(c, row, log_q, share / 2, r->db, &entropy)) / 2;
        }
    }
    r->grad_error += bits_of(k->dtype) * entropy;
    free(log_p);
    free(log_q);
}

/* -- cases ----------------------------------------------------------------------------------------------------------- */

static void draw_logits(losses_case *c, int64_t row)
{
    const int64_t n = c->k.n;
    const int kind = (int)below(10);
    const double even = one_in(2) ? 3 : 0;  /* a and b: one softmax, from sums that are exact */
    const double apart = kind == 1 ? 1e-3 : kind == 2 ? 0 : 0.5, size = kind == 3 ? 12 : 2;
    const double a_off = kind == 4 ? 200 : 0, b_off = kind == 4 ? 190 : kind == 5 ? 30 : kind == 2 ? even : 0;
    const int64_t top = below(n);
    for (int64_t i = 0; i < n; i++) {
        const double normal = size * draw_normal(), x = kind == 2 ? rint(normal * 16) / 16 : normal;
        double a = x + a_off, b = (kind >= 8 || kind == 3 ? size * draw_normal() : x + apart * draw_normal()) + b_off;
        if (kind == 6 && i == top)
            a += 18, b += 18;
        if ((kind == 7 && i % 3 == 1) || (kind == 9 && n > 1 && row % 2 && i == top))
            a = b = -INFINITY;
        if (kind == 9 && row % 4 == 0)
            a = b = -INFINITY;  /* nothing is allowed */
        put(c->a.dtype, element(&c->a, row, i), a);
        if (c->b.data)
            put(c->a.dtype, element(&c->b, row, i), b);
    }
    if (kind == 8 && c->b.data && one_in(2))
        put(c->a.dtype, element(&c->b, row, top), -INFINITY);  /* a alone allows it */
    if (one_in(25))
        put(c->a.dtype, element(c->b.data && one_in(2) ? &c->b : &c->a, row, top), NAN);
}

static void draw_target(losses_case *c, int64_t row)
{
    const int64_t n = c->k.n;
    const int one_hot = one_in(4);
    const int64_t top = below(n);
    for (int64_t i = 0; i < n; i++)
        put(c->a.dtype, element(&c->target, row, i), one_hot ? i == top : one_in(4) ? 0 : draw_uniform() * 2 / (double)n);
}

static losses_case draw_case(enum fd_loss op, enum fd_dtype dtype)
{
    static const double temperature[] = {1, 1, 0.5, 2.5}, smoothing[] = {0, 0, 0.1, 1};
    const int64_t n = draw_length(one_in(8) ? 5000 : 300), rows = 1 + below(n > 300 ? 2 : 6);
    const int single = fd_loss_table[op].sides == 1, labelled = fd_loss_table[op].labels, in_place = one_in(4);
    losses_case c = {.a = new_rows(dtype, rows, n, 0)};
    fd_losses *k = &c.k;
    *k = (fd_losses){.dtype = dtype, .op = op, .rows = rows, .n = n, .weight = one_in(2) ? 1 : 1.0 / 3, .alpha = one_in(3) ? 0 : 0.7,
                     .inv_temperature = 1 / temperature[below(4)], .nontemporal = !in_place && one_in(2)};
    if (!single)
        c.b = one_in(2) ? like_rows(&c.a) : new_rows(dtype, rows, n, 0);
    for (int64_t row = 0; row < rows; row++)
        draw_logits(&c, row);
    c.a_values = values(&c.a);
    c.b_values = single ? NULL : values(&c.b);
    if (labelled) {
        k->smoothing = smoothing[below(4)];
        if (one_in(2)) {
            c.target = new_rows(dtype, rows, n, 0);
            for (int64_t row = 0; row < rows; row++)
                draw_target(&c, row);
            c.t_values = values(&c.target);
            k->target = c.target.data;
            k->target_step = c.target.step;
        } else {
            k->label = c.label = memory((size_t)rows * sizeof *c.label);
            for (int64_t row = 0; row < rows; row++)
                c.label[row] = one_in(3) ? n - 1 : below(n);
        }
    }
    if (one_in(3)) {
        k->skip = c.skip = memory((size_t)rows);
        for (int64_t row = 0; row < rows; row++) {
            c.skip[row] = (uint8_t)one_in(3);
            if (c.skip[row] && c.label)
                c.label[row] = -100;
        }
    }
    c.da = in_place ? c.a : new_rows(dtype, rows, n, 0);
    if (!single)
        c.db = in_place ? c.b : one_in(2) ? like_rows(&c.da) : new_rows(dtype, rows, n, 0);
    k->a = c.a.data, k->b = c.b.data, k->da = c.da.data, k->db = c.db.data;
    k->a_step = c.a.step, k->b_step = c.b.step, k->da_step = c.da.step, k->db_step = c.db.step;
    k->loss = memory((size_t)rows * sizeof *k->loss);
    k->kl = labelled && !single ? memory((size_t)rows * sizeof *k->kl) : NULL;
    return c;
}

static void free_case(losses_case *c)
{
    if (c->da.owner != c->a.owner)
        free(c->da.owner), free(c->db.owner);
    free(c->a.owner), free(c->b.owner), free(c->target.owner);
    free(c->a_values), free(c->b_values), free(c->t_values);
    free(c->label), free(c->skip), free(c->k.loss), free(c->k.kl);
}

/* -- checks ---------------------------------------------------------------------------------------------------------- */

/* Run in one part, then again from the same memory in several, last first: the same bits. */
static void run_twice(losses_case *c)
{
    const fd_losses *k = &c->k;
    const size_t doubles = (size_t)k->rows * sizeof(double);
    char *da = bytes_of(&c->da), *db = c->db.owner ? bytes_of(&c->db) : NULL;
    double *loss = memory(doubles);
    const fd_work work = fd_losses_work(k);
    fd_work_on(&work, 0, k->rows);
    check_gaps(&c->da, da, "da");
    if (db)
        check_gaps(&c->db, db, "db");
    char *da_once = bytes_of(&c->da), *db_once = db ? bytes_of(&c->db) : NULL;
    memcpy(loss, k->loss, doubles);
    memcpy(c->da.owner, da, c->da.bytes);
    if (db)
        memcpy(c->db.owner, db, c->db.bytes);
    run_in_parts(&work);
    CHECK(!memcmp(da_once, c->da.owner, c->da.bytes) && (!db || !memcmp(db_once, c->db.owner, c->db.bytes)) && !memcmp(loss, k->loss, doubles),
          "loss %s, dtype %d, %" PRId64 " classes: rows in several parts differ", fd_loss_table[k->op].name, (int)k->dtype, k->n);
    free(da), free(db), free(da_once), free(db_once), free(loss);
}

static void check_gradient(const losses_case *c, const matrix *got, int64_t row, const real *want, const row_result *r, const char *name)
{
    real largest = 0;
    for (int64_t i = 0; i < c->k.n; i++)
        largest = fabsl(want[i]) > largest ? fabsl(want[i]) : largest;
    const double error = (double)((bits_of(c->k.dtype) * largest + r->grad_error) * unit(c->k.dtype));
    for (int64_t i = 0; i < c->k.n; i++)
        CHECK(close_to(c->k.dtype, get(c->k.dtype, element(got, row, i)), (double)want[i], error),
              "loss %s, dtype %d: %s of class %" PRId64 " of %" PRId64 " is %.9g, not %.9Lg; off by %.3Lg of the largest", fd_loss_table[c->k.op].name,
              (int)c->k.dtype, name, i, c->k.n, get(c->k.dtype, element(got, row, i)), want[i],
              fabsl(get(c->k.dtype, element(got, row, i)) - want[i]) / largest);
}

static void check_value(const losses_case *c, const char *name, double got, real want, real error)
{
    error = (bits_of(c->k.dtype) * fabsl(want) + error) * unit(c->k.dtype) + (c->k.dtype == FD_F64 ? 0 : 1e-37);
    CHECK(got == (double)want || fabsl(got - want) <= error || (isnan(got) && isnan(want)), "loss %s, dtype %d, %" PRId64 " classes: %s is %.15g, not %.15Lg",
          fd_loss_table[c->k.op].name, (int)c->k.dtype, c->k.n, name, got, want);
}

void check_losses(enum fd_loss op, enum fd_dtype dtype)
{
    losses_case c = draw_case(op, dtype);
    run_twice(&c);
    row_result r = {.da = memory((size_t)c.k.n * sizeof *r.da), .db = memory((size_t)c.k.n * sizeof *r.db)};
    for (int64_t row = 0; row < c.k.rows; row++) {
        row_of(&c, row, &r);
        check_value(&c, "the loss", c.k.loss[row], r.loss, r.error);
        if (c.k.kl)
            check_value(&c, "the symmetric KL", c.k.kl[row], r.kl, r.kl_error);
        check_gradient(&c, &c.da, row, r.da, &r, "da");
        if (c.db.data)
            check_gradient(&c, &c.db, row, r.db, &r, "db");
    }
    free(r.da), free(r.db);
    free_case(&c);
}
