/* Operations on arrays of any layout (plan.c, run.c and the elementwise kernels), element by element by the rule and by ops.def: to the
 * bit, or within the bound that stands there. */
#include "check.h"

typedef struct {
    char *owner, *data; /* data: the element at index 0 along every axis */
    size_t bytes;
} buffer;

static int inputs_of(enum fd_op op)
{
    return op < FD_OPS ? fd_op_inputs(op) : 0;
}

/* Memory for an array of any order of axes, with gaps and negative steps (and steps of 0 where it is only read). */
static buffer lay_out(const fd_elementwise *k, int64_t item, int64_t *step, int shared)
{
    int order[FD_MAX_NDIM];
    int64_t run = item * (one_in(4) ? 2 : 1), low = 0, high = 0;
    for (int a = 0; a < k->ndim; a++)
        order[a] = k->ndim - 1 - a;
    for (int a = 0; a < k->ndim && one_in(2); a++) {
        int b = (int)below(k->ndim), swap = order[a];
        order[a] = order[b];
        order[b] = swap;
    }
    for (int a = 0; a < k->ndim; a++) {
        int axis = order[a];
        step[axis] = shared && one_in(6) ? 0 : one_in(8) ? -run : run;
        if (step[axis])
            run *= k->axis[axis].n + (one_in(6) ? 1 : 0);
        int64_t reach = step[axis] * (k->axis[axis].n - 1);
        *(reach < 0 ? &low : &high) += reach;
    }
    int64_t lead = item * below(16);
    buffer made = {.bytes = (size_t)(lead - low + high + item)};
    made.owner = memory(made.bytes);
    made.data = made.owner + lead - low;
    return made;
}

static void fill(buffer b, enum fd_dtype dtype, int any_bits)
{
    for (size_t i = 0; i < b.bytes; i++)
        b.owner[i] = (char)draw();
    if (!any_bits)
        for (size_t i = 0; i + (size_t)ITEM[dtype] <= b.bytes; i += (size_t)ITEM[dtype])
            put(dtype, b.owner + i, one_in(50) ? 0 : dtype == FD_F16 && one_in(20) ? 65504 * draw_uniform() : 8 * draw_uniform() - 4);
}

typedef struct {
    fd_elementwise job;
    buffer y, in[FD_INPUTS];
    double *p;
    int64_t size, item;
} array_case;

static array_case draw_case(enum fd_op op, enum fd_dtype dtype)
{
    array_case c = {.size = 1, .item = op == FD_KEEP ? 1 : op == FD_UNIFORM ? 4 : ITEM[dtype]};
    fd_elementwise *k = &c.job;
    k->op = op;
    k->dtype = dtype;
    k->ndim = (int)below(5);
    for (int a = 0; a < k->ndim; a++) {
        int64_t most = 12000 / c.size, n = one_in(3) ? 1 + below(k->ndim == 1 ? 10000 : 700) : 1 + below(9);
        k->axis[a].n = n < most ? n : most > 0 ? most : 1;
        c.size *= k->axis[a].n;
    }
    /* the mask: part of one that may be larger along each axis, or shared along it */
    uint64_t extent = 0, step = one_in(8) ? 3 : 1;
    for (int a = k->ndim - 1; a >= 0; a--) {
        k->axis[a].mask = one_in(5) ? 0 : (int64_t)step;
        extent += (uint64_t)k->axis[a].mask * (uint64_t)(k->axis[a].n - 1);
        if (k->axis[a].mask)
            step *= (uint64_t)(k->axis[a].n + (one_in(4) ? below(5) : 0));
    }
    k->mask = draw_mask(extent);
    if (op == FD_UNIFORM)  /* bits that are stored have none behind them */
        free((void *)k->mask.stored), k->mask.stored = NULL;
    /* p: one, or one for each index of some leading axes */
    int axes = one_in(4) ? (int)below(k->ndim + 1) : 0;
    int64_t count = 1;
    for (int a = axes - 1; a >= 0; a--) {
        k->axis[a].p = count;
        count *= k->axis[a].n;
    }
    k->p = c.p = memory((size_t)count * sizeof *c.p);
    for (int64_t i = 0; i < count; i++)
        c.p[i] = draw_p(&k->mask);

    int64_t along[FD_MAX_NDIM];
    c.y = lay_out(k, c.item, along, 0);
    k->y = c.y.data;
    for (int a = 0; a < k->ndim; a++)
        k->axis[a].y = along[a];
    int in_place = one_in(6) ? (int)below(FD_INPUTS) : -1;
    for (int i = 0; i < inputs_of(op); i++) {
        if (i == in_place) {
            for (int a = 0; a < k->ndim; a++)
                k->axis[a].in[i] = k->axis[a].y;
            k->in[i] = k->y;
            continue;
        }
        c.in[i] = lay_out(k, c.item, along, 1);
        for (int a = 0; a < k->ndim; a++)
            k->axis[a].in[i] = along[a];
        fill(c.in[i], dtype, op == FD_APPLY);
        k->in[i] = c.in[i].data;
    }
    fill(c.y, dtype, op == FD_APPLY || op >= FD_OPS);
    return c;
}

static void free_case(array_case *c)
{
    for (int i = 0; i < FD_INPUTS; i++)
        free(c->in[i].owner);
    free(c->y.owner);
    free((void *)c->job.mask.stored);
    free(c->p);
}

/* Run the case in some parts, last first, or on threads, and give the bytes of y; y itself is as before. */
static char *result_of(const array_case *c)
{
    char *before = memory(c->y.bytes), *after = memory(c->y.bytes);
    memcpy(before, c->y.owner, c->y.bytes);
    fd_plan plan;
    fd_plan_elementwise(&plan, &c->job);
    CHECK(plan.crossed || c->size <= 2 * FD_TILE * plan.units, "%" PRId64 " elements in %" PRId64 " units, which threads share", c->size, plan.units);
    const fd_work work = fd_elementwise_work(&plan);
    if (one_in(8))
        fd_share(&work, 3);  /* fd_run_elementwise wakes no thread for so few elements */
    else
        run_in_parts(&work);
    memcpy(after, c->y.owner, c->y.bytes);
    memcpy(c->y.owner, before, c->y.bytes);
    free(before);
    return after;
}

/* The op on one element, in what the dtype is computed in: a double rounded to float after each step gives the floats' own
 * sums and products, since it has more than twice their digits.  `error`: how far from that a result may lie. */
static double expected_of(enum fd_op op, enum fd_dtype dtype, const double *in, int is_kept, double scale, double *error)
{
    const double a = in[0], b = in[1], c = in[2];
    double dropped = is_kept;
    *error = 0;
    switch (op) {
#define FD_OPERATION(NAME, name, inputs, residual, value, size)                                             \
    case FD_##NAME:                                                                                         \
        *error = 4 * unit(dtype) * scale * (size);                                                          \
        dropped = !is_kept ? 0 : *error > 0 ? (value) * scale : rounded(dtype, value) * rounded(dtype, scale); \
        return residual ? rounded(dtype, dropped) + b : dropped;
#include "ops.def"
    default: (void)c; return dropped; /* FD_KEEP, FD_UNIFORM */
    }
}

/* y by the rule, element by element; as `got` has it where that is within the op's bound. */
static char *expected(const array_case *c, const char *got)
{
    const fd_elementwise *k = &c->job;
    int64_t at[FD_MAX_NDIM] = {0};
    char *y = memory(c->y.bytes);
    memcpy(y, c->y.owner, c->y.bytes);
    for (int64_t i = 0; i < c->size; i++) {
        uint64_t index = 0;
        int64_t to = c->y.data - c->y.owner, from[FD_INPUTS] = {0}, p = 0;
        double in[FD_INPUTS] = {0};
        for (int a = 0; a < k->ndim; a++) {
            index += (uint64_t)at[a] * (uint64_t)k->axis[a].mask;
            to += at[a] * k->axis[a].y;
            p += at[a] * k->axis[a].p;
            for (int j = 0; j < FD_INPUTS; j++)
                from[j] += at[a] * k->axis[a].in[j];
        }
        for (int j = 0; j < inputs_of(k->op); j++)
            in[j] = get(k->dtype, (const char *)k->in[j] + from[j]);
        double error, want = expected_of(k->op, k->dtype, in, kept(&k->mask, index, c->p[p]), fd_scale(c->p[p]), &error);
        const uint32_t uniform = fd_uniform32(k->mask.seed, k->mask.stream, k->mask.offset + index);
        if (k->op == FD_KEEP)
            y[to] = (char)want;
        else if (k->op == FD_UNIFORM)
            memcpy(y + to, &uniform, sizeof uniform);
        else if (error > 0 && want != 0 && close_to(k->dtype, get(k->dtype, got + to), want, error))
            memcpy(y + to, got + to, (size_t)c->item);
        else
            put(k->dtype, y + to, want);
        for (int a = k->ndim - 1; a >= 0 && ++at[a] == k->axis[a].n; a--)
            at[a] = 0;
    }
    return y;
}

void check_array(enum fd_op op, enum fd_dtype dtype)
{
    array_case c = draw_case(op, dtype);
    char *got = result_of(&c), *want = expected(&c, got);
    CHECK(!memcmp(got, want, c.y.bytes), "operation %s, dtype %d, %d axes, %" PRId64 " elements", op < FD_OPS ? fd_op_name(op) : op == FD_KEEP ? "keep" : "uniform",
          (int)dtype, c.job.ndim, c.size);
    free(want);
    free(got);
    free_case(&c);
}

/* Consecutive and large: stores that go past the cache.  Every seventh block, of sixteen in a tile, and the last is looked at.
 * The decisions of a block come from its 16 calls, which are the rule's own for all but the elements that tie. */
void check_large(enum fd_dtype dtype)
{
    const int64_t item = ITEM[dtype], size = ((int64_t)9 << 20) / item;
    const uint64_t offset = 77, seed = 1, stream = 2;
    const double p = 0.3, scale = fd_scale(p);
    const uint64_t threshold = fd_threshold(p);
    array_case c = {.size = size, .item = item};
    c.job = (fd_elementwise){.op = FD_APPLY, .dtype = dtype, .ndim = 1, .mask = {seed, stream, offset, NULL}, .p = &p,
                             .axis = {{.n = size, .y = item, .in = {item}, .mask = 1}}};
    c.y.bytes = c.in[0].bytes = (size_t)(size * item);
    c.job.y = c.y.data = c.y.owner = memory(c.y.bytes);
    c.job.in[0] = c.in[0].data = c.in[0].owner = memory(c.in[0].bytes);
    memset(c.y.owner, 0, c.y.bytes);
    for (size_t i = 0; i < c.in[0].bytes; i += 8) {
        uint64_t bits = draw();
        memcpy(c.in[0].owner + i, &bits, 8);
    }
    char *got = result_of(&c), want[8];
    const uint64_t last = ((uint64_t)size + offset - 1) / FD_BLOCK;
    for (uint64_t call = 0; call / 16 <= last; call++) {
        if (call / 16 % 7 && call / 16 < last)
            continue;
        uint32_t word[4] = {(uint32_t)call, 0, (uint32_t)stream, 0};
        fd_philox(word, (uint32_t)seed, 0);
        for (uint64_t j = 0; j < 16; j++) {
            const uint64_t index = call / 16 * FD_BLOCK + j / 4 * 64 + call % 16 * 4 + j % 4, byte = word[j / 4] >> (8 * (j % 4)) & 255;
            const int is_kept = byte == threshold >> 24 ? fd_keep(seed, stream, index, threshold) : byte < threshold >> 24;
            if (index < offset || index - offset >= (uint64_t)size)
                continue;
            const int64_t at = (int64_t)(index - offset) * item;
            const double in[FD_INPUTS] = {get(dtype, c.in[0].owner + at)};
            double error;
            put(dtype, want, expected_of(FD_APPLY, dtype, in, is_kept, scale, &error));
            CHECK(!memcmp(got + at, want, (size_t)item), "element %" PRIu64 " of a large array of dtype %d", index - offset, (int)dtype);
        }
    }
    free(got);
    free(c.y.owner);
    free(c.in[0].owner);
}
