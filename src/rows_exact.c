/* A row of the losses in double, straight from the formulas: for the rows that the kernels in losses_of.inc cannot do right.
 *
 * Those work in the lanes and the precision of the logits' dtype, for speed.  Here is what they leave: rows of few classes;
 * with a NaN, an infinity or numbers near the largest; whose two sides differ by little beside their offset; and whose
 * classes lie so far below the largest that their exponentials are no normal floats.
 *
 * With x = (a - max a) / T, e = exp(x), r the sum of e without the largest: p = e / (1 + r), log p = x - log1p(r), and 1 - p
 * of the largest class is r / (1 + r), so nothing that is nearly 1 is subtracted from 1.  Of two rows, e - f is made from
 * expm1 of x - y, and so are the difference of the sums, p - q and log(p / q).  x - y is (a - b) - (max a - max b), each with
 * what its rounding left; of p * (l - E_p[l]), whose sum is 0, the largest class has what the others leave. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "isa/half.h"
#include "rows.h"

typedef struct {
    const char *at;
    double max, rest;       /* the largest logit; the sum of the others' exponentials over its own */
    int64_t top;            /* where it is; -1: no class is allowed */
    int infinite, broken;   /* is there a -inf; a NaN or +inf */
} side;

static double element(enum fd_dtype dtype, const char *at, int64_t i)
{
    switch (dtype) {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) \
    case FD_##NAME: return TO_S(((const T *)at)[i]);
#include "dtypes.def"
    default: return NAN;  /* there is no other */
    }
}

static void put(enum fd_dtype dtype, char *at, int64_t i, double g)
{
    switch (dtype) {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) \
    case FD_##NAME: ((T *)at)[i] = FROM_S((S)g); break;
#include "dtypes.def"
    default: break;
    }
}

/* The logit of class i less the largest, over the temperature; -inf only for a class that is not allowed. */
static double below(const fd_losses *k, const side *s, int64_t i)
{
    const double a = element(k->dtype, s->at, i);
    if (a == -INFINITY)
        return a;
    const double x = (a / 2 - s->max / 2) * (2 * k->inv_temperature);  /* halves: no finite difference overflows */
    return x < -DBL_MAX ? -DBL_MAX : x;
}

static side look(const fd_losses *k, const char *at)
{
    side s = {.at = at, .max = -INFINITY, .top = -1};
    for (int64_t i = 0; i < k->n; i++) {
        const double a = element(k->dtype, at, i);
        s.broken |= isnan(a) || a == INFINITY;
        s.infinite |= a == -INFINITY;
        if (a > s.max) {
            s.max = a;
            s.top = i;
        }
    }
    if (!s.broken && s.top >= 0)
        for (int64_t i = 0; i < k->n; i++)
            s.rest += i == s.top ? 0 : exp(below(k, &s, i));
    return s;
}

static double logsumexp(const side *s)
{
    return log1p(s->rest);
}

static double share_of(const side *s)  /* 1 / the sum of the exponentials */
{
    return s->top < 0 ? 0 : 1 / (1 + s->rest);
}

/* -- cross entropy ---------------------------------------------------------------------------------------------------- */

/* What a label has of class i, with the smoothing. */
static double wanted(const fd_losses *k, int64_t row, int64_t i)
{
    const double even = k->smoothing / (double)k->n;
    const double t = k->target ? element(k->dtype, k->target + row * k->target_step, i) : i == k->label[row];
    return (1 - k->smoothing) * t + even;
}

typedef struct {
    double loss, mass, others;  /* mass: the sum of what is wanted; others: without the class with the largest logit */
} entropy;

static entropy entropy_of(const fd_losses *k, const side *s, int64_t row)
{
    entropy e = {0, 0, 0};
    for (int64_t i = 0; i < k->n; i++) {
        const double y = wanted(k, row, i);
        if (y != 0)
            e.loss -= y * below(k, s, i);
        e.mass += y;
        if (i != s->top)
            e.others += y;
    }
    e.loss += e.mass * logsumexp(s);
    return e;
}

/* p * mass - wanted, of class i. */
static double entropy_slope(const fd_losses *k, const side *s, const entropy *e, int64_t row, int64_t i, double p)
{
    return i == s->top ? e->others - e->mass * (s->rest * share_of(s)) : p * e->mass - wanted(k, row, i);
}

static void fill(const fd_losses *k, int64_t row, double loss, double gradient)
{
    k->loss[row] = loss;
    if (k->kl)
        k->kl[row] = loss;
    for (int64_t i = 0; i < k->n; i++) {
        put(k->dtype, k->da + row * k->da_step, i, gradient);
        if (k->db)
            put(k->dtype, k->db + row * k->db_step, i, gradient);
    }
}

static void single(const fd_losses *k, int64_t row, const side *s)
{
    const entropy e = entropy_of(k, s, row);
    const double weight = k->weight * k->inv_temperature, share = share_of(s);
    k->loss[row] = e.loss;
    for (int64_t i = 0; i < k->n; i++)
        put(k->dtype, k->da + row * k->da_step, i, weight * entropy_slope(k, s, &e, row, i, exp(below(k, s, i)) * share));
}

/* -- two rows --------------------------------------------------------------------------------------------------------- */

typedef struct {
    side a, b;
    double a_share, b_share, ea_minus_eb, log_ratio;  /* ea_minus_eb: the sum of exp(x) - exp(y); log of the ratio of the two sums */
    double p_top, q_top;    /* log(p / q) in the largest class of p, and of q */
} pair;

typedef struct { double p, q, p_minus_q, l; } both;  /* p_minus_q, l = log(p / q); 0 where neither allows a class */

static double minus(double x, double y, double *rest)  /* x - y, and what its rounding left */
{
    const double difference = x - y, part = difference - x;
    *rest = (x - (difference - part)) - (y + part);
    return difference;
}

static double logit_difference(const fd_losses *k, const pair *c, int64_t i, double x, double y)  /* x - y, 0 where they are equal */
{
    double rest, max_rest;
    const double of_class = minus(element(k->dtype, c->a.at, i), element(k->dtype, c->b.at, i), &rest);
    const double of_max = minus(c->a.max, c->b.max, &max_rest);
    const double d = ((of_class - of_max) + (rest - max_rest)) * k->inv_temperature;
    return x == y ? 0 : isfinite(d) ? d : x - y;
}

static double difference(double x, double y, double d)  /* exp(x) - exp(y) */
{
    return d == 0 ? 0 : d > 0 ? -exp(x) * expm1(-d) : exp(y) * expm1(d);
}

static both at(const fd_losses *k, const pair *c, int64_t i)
{
    const double x = below(k, &c->a, i), y = below(k, &c->b, i);
    both z = {exp(x) * c->a_share, exp(y) * c->b_share, 0, 0};
    if (x == -INFINITY && y == -INFINITY)
        return z;
    const double d = logit_difference(k, c, i, x, y);
    z.p_minus_q = (difference(x, y, d) - z.q * c->ea_minus_eb) * c->a_share;
    z.l = d - c->log_ratio;
    return z;
}

static double times(double p, double l)  /* 0 where p is, whatever l */
{
    return p == 0 ? 0 : p * l;
}

static double kl_term(const both *z)  /* p l - (p - q), whose sum is KL: no term is negative */
{
    const double l = z->l;
    if (fabs(l) > 1e-2)
        return times(z->p, l) - z->p_minus_q;
    return z->p * l * l * (1.0 / 2 - l * (1.0 / 6 - l * (1.0 / 24 - l * (1.0 / 120 - l * (1.0 / 720 - l / 5040)))));
}

/* log(p / m) for l = log(p / q), m = (p + q) / 2; log(q / m) is that of -l. */
static double js_log(double l)
{
    const double larger = -log1p(expm1(-fabs(l)) / 2);
    return l < 0 ? larger + l : larger;
}

static double js_term(const both *z)
{
    const double u = z->l / 2, w = u * u;
    if (fabs(u) < 0.05)  /* (p + q)(u tanh(u) - log(cosh(u))) */
        return (z->p + z->q) * w * (0.5 - w * (0.25 - w * (1.0 / 9 - w * (17.0 / 360 - w * 31.0 / 1575))));
    return times(z->p, js_log(z->l)) + times(z->q, js_log(-z->l));
}

/* A class's part of the divergence. */
static double term(const fd_loss_facts *f, const both *z)
{
    if (f->middle != 0)
        return f->middle * js_term(z) / 2;
    if (f->forward == f->reverse)  /* the normalisers cancel */
        return f->forward * times(z->p_minus_q, z->l);
    const both turned = {z->q, z->p, -z->p_minus_q, -z->l};
    return (f->forward == 0 ? 0 : f->forward * kl_term(z)) + (f->reverse == 0 ? 0 : f->reverse * kl_term(&turned));
}

/* log(p / m) at l = log(p / q) less that at `top`: directly, where both are near log(2) and would nearly agree. */
static double js_above(double l, double top)
{
    const double d = top - l;
    if (fabs(d) < 1 || (top > 0 && d < 700))
        return -log1p(expm1(d) / (1 + exp(top)));
    return js_log(l) - js_log(top);
}

/* What the gradients are made of: log(p / q), or log(p / m) and log(q / m), less that of the largest class of p, and of q. */
static both logs_at(const fd_losses *k, const pair *c, int64_t i, double *p_log, double *q_log)
{
    const both z = at(k, c, i);
    const int js = fd_loss_table[k->op].middle != 0;
    *p_log = js ? js_above(z.l, c->p_top) : z.l - c->p_top;
    *q_log = js ? js_above(-z.l, -c->q_top) : c->q_top - z.l;
    return z;
}

static double part(double weight, double x)  /* 0 where the weight is, whatever x */
{
    return weight == 0 ? 0 : weight * x;
}

static void double_row(const fd_losses *k, int64_t row, const side *a, const side *b)
{
    const fd_loss_facts *f = &fd_loss_table[k->op];
    const int js = f->middle != 0, labels = f->labels;
    const int a_none = a->top < 0, b_none = b->top < 0;
    pair c = {.a = *a, .b = *b, .a_share = share_of(a), .b_share = share_of(b)};
    int one_sided = 0;
    for (int64_t i = 0; i < k->n; i++) {
        const double x = below(k, a, i), y = below(k, b, i);
        one_sided |= f->forward != 0 && x > -INFINITY && y == -INFINITY;
        one_sided |= f->reverse != 0 && x == -INFINITY && y > -INFINITY;
        c.ea_minus_eb += a_none || b_none ? 0 : difference(x, y, logit_difference(k, &c, i, x, y));
    }
    const double ratio = c.ea_minus_eb * c.b_share;
    c.log_ratio = fabs(ratio) < 0.5 ? log1p(ratio) : logsumexp(a) - logsumexp(b);

    /* p (l - E_p[l]), and its like, from distances to the largest class: there nothing but what the others have is summed. */
    double divergence = 0, a_mean = 0, b_mean = 0;
    const int empty = a_none || b_none;
    if (!empty) {
        c.p_top = at(k, &c, a->top).l;
        c.q_top = at(k, &c, b->top).l;
    }
    for (int64_t i = 0; i < k->n && !empty; i++) {
        double p_log, q_log;
        const both z = logs_at(k, &c, i, &p_log, &q_log);
        a_mean += times(z.p, p_log);
        b_mean += times(z.q, q_log);
        divergence += term(f, &z);
    }
    if (divergence < 0)
        divergence = 0;
    if (js)
        divergence = a_none != b_none ? log(2) : divergence;
    else if (one_sided)
        divergence = INFINITY;

    const double slope = k->weight * k->inv_temperature, w = empty || one_sided ? 0 : slope * (labels ? k->alpha : 1);
    const int entropies = labels && !(a_none && b_none);
    const entropy none = {0, 0, 0}, ea = entropies ? entropy_of(k, a, row) : none, eb = entropies ? entropy_of(k, b, row) : none;
    k->loss[row] = labels ? (ea.loss + eb.loss) / 2 : divergence;
    if (labels)
        k->kl[row] = divergence;
    char *da = k->da + row * k->da_step, *db = k->db + row * k->db_step;
    for (int64_t i = 0; i < k->n; i++) {
        double ga = 0, gb = 0, p_log, q_log;
        const both z = logs_at(k, &c, i, &p_log, &q_log);
        if (w != 0) {
            const double own_a = times(z.p, p_log - a_mean), own_b = times(z.q, q_log - b_mean);
            ga = w * (js ? f->middle / 2 * own_a : part(f->forward, own_a) + part(f->reverse, z.p_minus_q));
            gb = w * (js ? f->middle / 2 * own_b : part(f->reverse, own_b) - part(f->forward, z.p_minus_q));
        }
        if (entropies) {
            ga += slope / 2 * entropy_slope(k, a, &ea, row, i, z.p);
            gb += slope / 2 * entropy_slope(k, b, &eb, row, i, z.q);
        }
        put(k->dtype, da, i, ga);
        put(k->dtype, db, i, gb);
    }
}

void fd_exact_row(const fd_losses *k, int64_t row)
{
    const side a = look(k, k->a + row * k->a_step);
    if (fd_loss_table[k->op].sides == 1) {
        if (a.broken)
            fill(k, row, NAN, NAN);
        else if (a.top < 0)
            fill(k, row, 0, 0);
        else
            single(k, row, &a);
        return;
    }
    const side b = look(k, k->b + row * k->b_step);
    if (a.broken || b.broken)
        fill(k, row, NAN, NAN);
    else
        double_row(k, row, &a, &b);
}
