/* The C kernels without Python: for instruction sets and machines that only an emulator has here, and for sanitizers.
 *
 *     check ANSWERS CASES     ANSWERS: a line per mask, "seed stream offset n p bits", p and bits in hexadecimal
 *
 * Every instruction set that this machine has must give the answers; must agree with the rule of stream.h, element by
 * element, on CASES random masks and arrays; and with the scalar kernels on the other operations.  Prints the instruction
 * sets it has checked.  Buffers end where their last element does, so that a sanitizer sees every byte beyond. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "isa/half.h"
#include "stream.h"

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s: ", fd_isa());                                                                         \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fprintf(stderr, "\n");                                                                                     \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t state;

static uint64_t draw(void) /* splitmix64 */
{
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static int64_t below(int64_t n)
{
    return (int64_t)(draw() % (uint64_t)n);
}

static int one_in(int64_t n)
{
    return below(n) == 0;
}

static void *memory(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        exit(2);
    return p;
}

static double draw_p(void)
{
    switch (below(6)) {
    case 0: return (double)below(257) / 256;
    case 1: return (double)below(65537) / 65536;
    case 2: return below(2) ? 1e-9 : 1 - 1e-9;
    case 3: return 0.1;
    default: return (double)(draw() >> 11) * 0x1p-53;
    }
}

static uint64_t draw_number(void)
{
    return one_in(3) ? draw() : one_in(2) ? (uint64_t)below(3) : UINT64_MAX;
}

/* An index at or around a boundary, with room for `extent` more below 2**64. */
static uint64_t draw_offset(uint64_t extent)
{
    static const uint64_t boundary[] = {0, 64, 256, 4096, 1ull << 32, 1ull << 36, 1ull << 60, 1ull << 63, UINT64_MAX};
    uint64_t at = boundary[below(9)], back = draw() % (extent + 300);
    at = one_in(4) ? draw() : at < back ? at : at - back;
    return at > UINT64_MAX - extent ? UINT64_MAX - extent : at;
}

/* -- packed bits ----------------------------------------------------------------------------------------------------- */

static void check_answer(char *line)
{
    uint64_t seed, stream, offset;
    int64_t n;
    char p[64], bits[4096];
    CHECK(sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNd64 " %63s %4095s", &seed, &stream, &offset, &n, p, bits) == 6,
          "not an answer: %s", line);
    size_t bytes = (size_t)(n + 7) / 8;
    uint8_t *got = memory(bytes);
    fd_keep_bits(got, (fd_source){seed, stream, offset, NULL}, strtod(p, NULL), n);
    for (size_t i = 0; i < bytes; i++) {
        char pair[3] = {bits[2 * i], bits[2 * i + 1], 0};
        CHECK(got[i] == strtoul(pair, NULL, 16), "byte %zu of the answer %s", i, line);
    }
    free(got);
}

static void check_bits(void)
{
    int64_t n = 1 + below(one_in(8) ? 10000 : 600);
    double p = draw_p();
    fd_source mask = {draw_number(), draw_number(), draw_offset((uint64_t)n), NULL};
    uint8_t *got = memory((size_t)(n + 7) / 8);
    fd_keep_bits(got, mask, p, n);
    for (int64_t i = 0; i < (n + 7) / 8 * 8; i++) {
        int kept = i < n && fd_keep(mask.seed, mask.stream, mask.offset + (uint64_t)i, fd_threshold(p));
        CHECK((got[i / 8] >> (i % 8) & 1) == kept, "bit %" PRId64 " of %" PRId64 " from %" PRIu64 ", p = %a", i, n, mask.offset, p);
    }
    free(got);
}

static void check_blocks(void)
{
    size_t blocks = 1 + (size_t)below(40);
    uint64_t seed = draw_number(), stream = draw_number(), first = draw_offset(40 * 256) / 256;
    uint64_t threshold = fd_threshold(draw_p());
    if (threshold == 0 || threshold >> 32)
        return;
    uint64_t *words = memory((blocks + 1) * 32);
    fd_pending none = {0};
    fd_kernels_in_use()->keep_blocks(words, blocks, first, seed, stream, threshold, (fd_soon){0}, &none);
    for (uint64_t i = 0; i < blocks * 256; i++)
        CHECK((int)(words[i / 64] >> (i % 64) & 1) == fd_keep(seed, stream, first * 256 + i, threshold),
              "element %" PRIu64 " of %zu blocks from %" PRIu64, i, blocks, first);
    free(words);
}

/* -- operations on arrays -------------------------------------------------------------------------------------------- */

enum { INPUTS_OF_KEEP = 0 };
static const int INPUTS[FD_OPS + 1] = {[FD_APPLY] = 1, [FD_ADD] = 2,  [FD_BIAS_ADD] = 3,      [FD_RELU] = 1, [FD_RELU_BACKWARD] = 2,
                                       [FD_GELU] = 1,  [FD_GELU_BACKWARD] = 2, [FD_KEEP] = INPUTS_OF_KEEP};
static const int64_t ITEM[FD_DTYPES] = {[FD_F32] = 4, [FD_F64] = 8, [FD_F16] = 2, [FD_BF16] = 2};

typedef struct {
    char *owner, *data; /* data: the element at index 0 along every axis */
    size_t bytes;
} buffer;

/* Memory for an array of any order of axes, with gaps and negative steps (and steps of 0 where it is only read). */
static buffer lay_out(const fd_walk *k, int64_t item, int64_t *step, int shared)
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
            run *= k->shape[axis] + (one_in(6) ? 1 : 0);
        int64_t reach = step[axis] * (k->shape[axis] - 1);
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
    if (any_bits || dtype == FD_F16) { /* f16: all but NaN and infinity */
        for (size_t i = 0; i < b.bytes; i++)
            b.owner[i] = (char)draw();
        for (size_t i = 0; !any_bits && i + 1 < b.bytes; i += 2)
            b.owner[i + 1] &= (char)0xBF;
        return;
    }
    size_t item = (size_t)ITEM[dtype];
    for (size_t i = 0; i + item <= b.bytes; i += item) {
        double value = ((double)(draw() >> 11) * 0x1p-53 - 0.5) * 8;
        float narrow = (float)value;
        uint16_t half = f32_to_bf16(narrow);
        memcpy(b.owner + i, dtype == FD_F64 ? (void *)&value : dtype == FD_F32 ? (void *)&narrow : (void *)&half, item);
    }
}

typedef struct {
    fd_walk walk;
    buffer y, in[FD_INPUTS];
    uint8_t *stored;
    double *p;
    int64_t size, item;
} array_case;

static array_case draw_case(enum fd_op op, enum fd_dtype dtype)
{
    array_case c = {.size = 1, .item = op == FD_KEEP ? 1 : ITEM[dtype]};
    fd_walk *k = &c.walk;
    k->op = op;
    k->dtype = dtype;
    k->ndim = (int)below(5);
    for (int a = 0; a < k->ndim; a++) {
        int64_t most = 12000 / c.size, n = one_in(3) ? 1 + below(k->ndim == 1 ? 10000 : 700) : 1 + below(9);
        k->shape[a] = n < most ? n : most > 0 ? most : 1;
        c.size *= k->shape[a];
    }
    /* the mask: part of one that may be larger along each axis, or shared along it */
    uint64_t extent = 0, step = one_in(8) ? 3 : 1;
    for (int a = k->ndim - 1; a >= 0; a--) {
        k->m_step[a] = one_in(5) ? 0 : (int64_t)step;
        extent += (uint64_t)k->m_step[a] * (uint64_t)(k->shape[a] - 1);
        if (k->m_step[a])
            step *= (uint64_t)(k->shape[a] + (one_in(4) ? below(5) : 0));
    }
    k->mask = (fd_source){draw_number(), draw_number(), draw_offset(extent), NULL};
    if (one_in(5)) {
        k->mask.offset = (uint64_t)below(100);
        size_t bytes = (size_t)(k->mask.offset + extent) / 8 + 1;
        k->mask.stored = c.stored = memory(bytes);
        for (size_t i = 0; i < bytes; i++)
            c.stored[i] = (uint8_t)draw();
    }
    /* p: one, or one for each index of some leading axes */
    int axes = one_in(4) ? (int)below(k->ndim + 1) : 0;
    int64_t count = 1;
    for (int a = axes - 1; a >= 0; a--) {
        k->p_step[a] = count;
        count *= k->shape[a];
    }
    k->p = c.p = memory((size_t)count * sizeof *c.p);
    for (int64_t i = 0; i < count; i++)
        c.p[i] = one_in(20) ? (double)below(2) : draw_p();

    c.y = lay_out(k, c.item, k->y_step, 0);
    k->y = c.y.data;
    for (int i = 0; i < INPUTS[op]; i++) {
        if (i == 0 && one_in(6)) { /* in place */
            memcpy(k->in_step[0], k->y_step, sizeof k->y_step);
            k->in[0] = k->y;
            continue;
        }
        c.in[i] = lay_out(k, c.item, k->in_step[i], 1);
        fill(c.in[i], dtype, op == FD_APPLY);
        k->in[i] = c.in[i].data;
    }
    fill(c.y, dtype, op == FD_APPLY);
    return c;
}

static void free_case(array_case *c)
{
    for (int i = 0; i < FD_INPUTS; i++)
        free(c->in[i].owner);
    free(c->y.owner);
    free(c->stored);
    free(c->p);
}

/* Run the case's walk in some parts, last first, and give the bytes of y; y itself is as before. */
static char *result_of(const array_case *c)
{
    fd_walk k = c->walk;
    char *before = memory(c->y.bytes), *after = memory(c->y.bytes);
    memcpy(before, c->y.owner, c->y.bytes);
    fd_plan(&k);
    for (int64_t end = k.units, first; end > 0; end = first) {
        first = one_in(2) ? 0 : below(end);
        fd_run(&k, first, end);
    }
    memcpy(after, c->y.owner, c->y.bytes);
    memcpy(c->y.owner, before, c->y.bytes);
    free(before);
    return after;
}

static void expect(void *y, enum fd_op op, enum fd_dtype dtype, const void *x, int kept, double scale)
{
    if (op == FD_KEEP) {
        *(uint8_t *)y = (uint8_t)kept;
    } else if (dtype == FD_F64) {
        *(double *)y = kept ? *(const double *)x * scale : 0.0;
    } else if (dtype == FD_F32) {
        *(float *)y = kept ? *(const float *)x * (float)scale : 0.0f;
    } else {
        uint16_t h = *(const uint16_t *)x;
        float scaled = (dtype == FD_F16 ? f16_to_f32(h) : bf16_to_f32(h)) * (float)scale;
        *(uint16_t *)y = !kept ? 0 : dtype == FD_F16 ? f32_to_f16(scaled) : f32_to_bf16(scaled);
    }
}

/* y by the rule, element by element. */
static char *expected(const array_case *c)
{
    const fd_walk *k = &c->walk;
    int64_t at[FD_MAX_NDIM] = {0};
    char *y = memory(c->y.bytes);
    memcpy(y, c->y.owner, c->y.bytes);
    for (int64_t i = 0; i < c->size; i++) {
        uint64_t index = k->mask.offset;
        int64_t to = c->y.data - c->y.owner, from = 0, p = 0;
        for (int a = 0; a < k->ndim; a++) {
            index += (uint64_t)at[a] * (uint64_t)k->m_step[a];
            to += at[a] * k->y_step[a];
            from += at[a] * k->in_step[0][a];
            p += at[a] * k->p_step[a];
        }
        int kept = c->stored ? c->stored[index / 8] >> (index % 8) & 1
                             : fd_keep(k->mask.seed, k->mask.stream, index, fd_threshold(c->p[p]));
        expect(y + to, k->op, k->dtype, INPUTS[k->op] ? (const char *)k->in[0] + from : NULL, kept, fd_scale(c->p[p]));
        for (int a = k->ndim - 1; a >= 0 && ++at[a] == k->shape[a]; a--)
            at[a] = 0;
    }
    return y;
}

static int close_enough(const char *a, const char *b, size_t bytes, enum fd_dtype dtype)
{
    for (size_t i = 0; i < bytes; i += (size_t)ITEM[dtype]) {
        double u, v, relative;
        if (dtype == FD_F64) {
            memcpy(&u, a + i, 8);
            memcpy(&v, b + i, 8);
            relative = 1e-14;
        } else if (dtype == FD_F32) {
            float f, g;
            memcpy(&f, a + i, 4);
            memcpy(&g, b + i, 4);
            u = f, v = g, relative = 1e-6;
        } else {
            uint16_t h, l;
            memcpy(&h, a + i, 2);
            memcpy(&l, b + i, 2);
            u = dtype == FD_F16 ? f16_to_f32(h) : bf16_to_f32(h);
            v = dtype == FD_F16 ? f16_to_f32(l) : bf16_to_f32(l);
            relative = dtype == FD_F16 ? 0x1p-9 : 0x1p-6;
        }
        if (!(fabs(u - v) <= relative * fmax(1, fabs(u))) && !(u == v) && !(isnan(u) && isnan(v)))
            return 0;
    }
    return 1;
}

static void check_array(const char *isa, enum fd_op op, enum fd_dtype dtype)
{
    array_case c = draw_case(op, dtype);
    char *want, *got = result_of(&c);
    int ruled = op == FD_APPLY || op == FD_KEEP;
    if (ruled) {
        want = expected(&c);
    } else {
        fd_use_isa("scalar");
        want = result_of(&c);
        fd_use_isa(isa);
    }
    int same = op == FD_GELU || op == FD_GELU_BACKWARD ? close_enough(got, want, c.y.bytes, dtype)
                                                        : !memcmp(got, want, c.y.bytes);
    CHECK(same, "operation %d, dtype %d, %d axes, %" PRId64 " elements", (int)op, (int)dtype, c.walk.ndim, c.size);
    free(want);
    free(got);
    free_case(&c);
}

/* Consecutive and large: stores that go past it. */
static void check_large(const char *isa, enum fd_dtype dtype)
{
    array_case c = {.size = (int64_t)9 << 20, .item = ITEM[dtype], .p = (double[]){0.3}};
    c.size /= c.item;
    c.walk = (fd_walk){.op = FD_APPLY, .dtype = dtype, .ndim = 1, .mask = {1, 2, 77, NULL}, .p = c.p, .shape = {c.size},
                       .y_step = {c.item}, .in_step = {{c.item}}, .m_step = {1}};
    c.y.bytes = c.in[0].bytes = (size_t)(c.size * c.item);
    c.walk.y = c.y.data = c.y.owner = memory(c.y.bytes);
    c.walk.in[0] = c.in[0].data = c.in[0].owner = memory(c.in[0].bytes);
    memset(c.y.owner, 0, c.y.bytes);
    for (size_t i = 0; i < c.in[0].bytes; i += 8) {
        uint64_t bits = draw();
        memcpy(c.in[0].owner + i, &bits, 8);
    }
    char *got = result_of(&c);
    fd_use_isa("scalar");
    char *want = result_of(&c);
    fd_use_isa(isa);
    CHECK(!memcmp(got, want, c.y.bytes), "a large array of dtype %d", (int)dtype);
    free(got);
    free(want);
    free(c.y.owner);
    free(c.in[0].owner);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    for (const char *const *isa = fd_isa_found(); *isa; isa++) {
        char line[8192];
        CHECK(!fd_use_isa(*isa) && !strcmp(fd_isa(), *isa), "cannot be chosen");
        FILE *answers = fopen(argv[1], "r");
        if (!answers)
            return 2;
        while (fgets(line, sizeof line, answers))
            check_answer(line);
        fclose(answers);
        state = 1;
        for (int i = 0; i < atoi(argv[2]); i++) {
            check_bits();
            check_blocks();
            check_array(*isa, (enum fd_op)(i % (FD_OPS + 1)), (enum fd_dtype)(i / (FD_OPS + 1) % FD_DTYPES));
            check_array(*isa, FD_APPLY, (enum fd_dtype)(i % FD_DTYPES));
        }
        for (int dtype = 0; dtype < FD_DTYPES; dtype++)
            check_large(*isa, (enum fd_dtype)dtype);
        printf("%s\n", *isa);
    }
    CHECK(fd_use_isa("no such") == -1, "an unknown name was taken");
    return 0;
}
