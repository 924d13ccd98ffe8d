/* The C kernels without Python: for instruction sets and machines that only an emulator has here, and for sanitizers.
 *
 *     check ANSWERS CASES     ANSWERS: a line per mask, "seed stream offset n p bits", p and bits in hexadecimal
 *
 * Every instruction set that this machine has must give the answers, and on CASES random cases of each kernel what the rule
 * of stream.h and the formulas give that stand in check_*.c, element by element.  Prints the instruction sets it has
 * checked.  Buffers end where their last element does, so that a sanitizer sees every byte beyond. */
#include "check.h"

static uint64_t state;

uint64_t draw(void) /* splitmix64 */
{
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

int64_t below(int64_t n)
{
    return (int64_t)(draw() % (uint64_t)n);
}

int one_in(int64_t n)
{
    return below(n) == 0;
}

double draw_uniform(void)
{
    return (double)(draw() >> 11) * 0x1p-53;
}

double draw_normal(void) /* Box and Muller's */
{
    double radius = sqrt(-2 * log(1 - draw_uniform()));
    return radius * cos(6.283185307179586 * draw_uniform());
}

int64_t draw_length(int64_t most)
{
    static const int64_t boundary[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
    int64_t n = one_in(3) ? 1 + below(most) : boundary[below(one_in(4) ? 14 : 9)] + below(5) - 2;
    return n < 1 ? 1 : n > most ? most : n;
}

uint64_t draw_number(void)
{
    return one_in(3) ? draw() : one_in(2) ? (uint64_t)below(3) : UINT64_MAX;
}

uint64_t draw_offset(uint64_t extent)
{
    static const uint64_t boundary[] = {0, 64, 256, 4096, 1ull << 32, 1ull << 36, 1ull << 60, 1ull << 63, UINT64_MAX};
    uint64_t at = boundary[below(9)], back = draw() % (extent + 300);
    at = one_in(4) ? draw() : at < back ? at : at - back;
    return at > UINT64_MAX - extent ? UINT64_MAX - extent : at;
}

fd_source draw_mask(uint64_t extent)
{
    fd_source mask = {draw_number(), draw_number(), draw_offset(extent), NULL};
    if (one_in(5)) {
        mask.offset = (uint64_t)below(100);
        size_t bytes = (size_t)(mask.offset + extent) / 8 + 1;
        uint8_t *stored = memory(bytes);
        for (size_t i = 0; i < bytes; i++)
            stored[i] = (uint8_t)draw();
        mask.stored = stored;
    }
    return mask;
}

double draw_p(const fd_source *mask)
{
    switch (below(8)) {
    case 0: return (double)below(256) / 256;
    case 1: return (double)below(65536) / 65536;
    case 2: return below(2) ? 1e-9 : 1 - 1e-9;
    case 3: return 0.1;
    case 4: return one_in(2) ? 0 : mask->stored ? 0.5 : 1;
    default: return draw_uniform();
    }
}

void *memory(size_t bytes)
{
    void *p;
    if (posix_memalign(&p, 64, bytes ? bytes : 1))
        exit(2);
    return p;
}

int kept(const fd_source *mask, uint64_t index, double p)
{
    index += mask->offset;
    return mask->stored ? mask->stored[index / 8] >> (index % 8) & 1 : fd_keep(mask->seed, mask->stream, index, fd_threshold(p));
}

const int64_t ITEM[FD_DTYPES] = {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) [FD_##NAME] = sizeof(T),
#include "dtypes.def"
};

double get(enum fd_dtype dtype, const void *at)
{
    switch (dtype) {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) \
    case FD_##NAME: { T x; memcpy(&x, at, sizeof x); return TO_S(x); }
#include "dtypes.def"
    default: exit(2);
    }
}

void put(enum fd_dtype dtype, void *at, double value)
{
    switch (dtype) {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) \
    case FD_##NAME: { T x = FROM_S((S)value); memcpy(at, &x, sizeof x); break; }
#include "dtypes.def"
    default: exit(2);
    }
}

double rounded(enum fd_dtype dtype, double value)
{
    switch (dtype) {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) case FD_##NAME: return (S)value;
#include "dtypes.def"
    default: exit(2);
    }
}

double unit(enum fd_dtype dtype)
{
    return rounded(dtype, 1 + 0x1p-52) > 1 ? 0x1p-52 : 0x1p-23;
}

int close_to(enum fd_dtype dtype, double got, double want, double error)
{
    static const double limits[FD_DTYPES][2] = {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) {half, least},
#include "dtypes.def"
    };
    const double half = limits[dtype][0], least = limits[dtype][1];
    char there[8];
    put(dtype, there, want);
    return get(dtype, there) == got || fabs(got - want) <= error + fmax(half * fabs(want), least) || (isnan(got) && isnan(want));
}

/* -- rows ------------------------------------------------------------------------------------------------------------ */

static matrix laid_out(matrix m, int64_t lead)
{
    int64_t reach = m.step * (m.rows - 1);
    m.bytes = (size_t)(lead + llabs(reach) + m.n * ITEM[m.dtype]);
    m.owner = memory(m.bytes);
    m.data = m.owner + lead + (reach < 0 ? -reach : 0);
    for (size_t i = 0; i < m.bytes; i++)
        m.owner[i] = (char)draw();
    return m;
}

matrix new_rows(enum fd_dtype dtype, int64_t rows, int64_t n, int consecutive)
{
    const int64_t item = ITEM[dtype], step = item * (n + (consecutive || one_in(2) ? 0 : below(9)));
    return laid_out((matrix){.dtype = dtype, .rows = rows, .n = n, .step = !consecutive && one_in(6) ? -step : step},
                    one_in(2) ? 0 : item * below(40));
}

matrix like_rows(const matrix *m)
{
    return laid_out(*m, m->data - m->owner + (m->step < 0 ? m->step * (m->rows - 1) : 0));
}

void *element(const matrix *m, int64_t row, int64_t i)
{
    return m->data + row * m->step + i * ITEM[m->dtype];
}

double *values(const matrix *m)
{
    double *all = memory((size_t)(m->rows * m->n) * sizeof *all);
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t i = 0; i < m->n; i++)
            all[row * m->n + i] = get(m->dtype, element(m, row, i));
    return all;
}

char *bytes_of(const matrix *m)
{
    return memcpy(memory(m->bytes), m->owner, m->bytes);
}

void check_gaps(const matrix *m, const char *before, const char *what)
{
    char *want = memcpy(memory(m->bytes), before, m->bytes);
    for (int64_t row = 0; row < m->rows; row++)
        memcpy(want + ((char *)element(m, row, 0) - m->owner), element(m, row, 0), (size_t)(m->n * ITEM[m->dtype]));
    CHECK(!memcmp(want, m->owner, m->bytes), "%s: memory between the rows was written", what);
    free(want);
}

void run_in_parts(const fd_work *work)
{
    for (int64_t end = work->units, first; end > 0; end = first) {
        first = one_in(2) ? 0 : below(end);
        fd_work_on(work, first, end);
    }
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
    fd_keep_bits(got, (fd_source){seed, stream, offset, NULL}, strtod(p, NULL), n, 1);
    for (size_t i = 0; i < bytes; i++) {
        char pair[3] = {bits[2 * i], bits[2 * i + 1], 0};
        CHECK(got[i] == strtoul(pair, NULL, 16), "byte %zu of the answer %s", i, line);
    }
    free(got);
}

static void check_bits(void)
{
    int64_t n = 1 + below(one_in(8) ? 10000 : 600);
    fd_source mask = draw_mask((uint64_t)n);
    double p = draw_p(&mask);
    uint8_t *got = memory((size_t)(n + 7) / 8);
    fd_keep_bits(got, mask, p, n, 1 + (int)below(3));
    for (int64_t i = 0; i < (n + 7) / 8 * 8; i++)
        CHECK((got[i / 8] >> (i % 8) & 1) == (i < n && kept(&mask, (uint64_t)i, p)),
              "bit %" PRId64 " of %" PRId64 " from %" PRIu64 ", p = %a", i, n, mask.offset, p);
    free((void *)mask.stored);
    free(got);
}

/* Runs of one reader of bits, the indices of the kept among them and their uniforms, element by element. */
static void check_runs(void)
{
    const uint64_t extent = 20000;
    const fd_source mask = draw_mask(extent);
    const double p = draw_p(&mask);
    fd_bits bits;
    fd_bits_open(&bits, mask, mask.offset + extent - 1, one_in(2));
    for (uint64_t at = 0; at < extent; at += (uint64_t)below(5000)) {
        const uint64_t most = extent - at, n = one_in(2) ? 1 + draw() % FD_TILE : 1 + draw() % 300;
        const size_t run = n < most ? n : most;
        uint64_t copy[FD_TILE / 64];
        uint16_t places[FD_TILE];
        uint32_t uniforms[FD_TILE];
        const uint64_t *words = fd_bits_at(&bits, mask.offset + at, run, fd_threshold(p), (fd_prefetch){0});
        for (size_t i = 0; i < run; i++)
            CHECK((int)(words[i / 64] >> (i % 64) & 1) == kept(&mask, at + i, p), "bit %zu of a run at %" PRIu64, i, mask.offset + at);
        fd_bits_copy(copy, &bits, mask.offset + at, run, fd_threshold(p), (fd_prefetch){0});
        for (size_t i = 0; i < run; i++)
            CHECK((int)(copy[i / 64] >> (i % 64) & 1) == kept(&mask, at + i, p), "bit %zu of a copy at %" PRIu64, i, mask.offset + at);
        const size_t count = fd_kept_at(places, &bits, mask.offset + at, run, fd_threshold(p));
        size_t next = 0;
        for (size_t i = 0; i < run; i++)
            if (kept(&mask, at + i, p))
                CHECK(next < count && places[next++] == i, "kept index %zu of a run at %" PRIu64, i, mask.offset + at);
        CHECK(next == count, "%zu are kept at %" PRIu64 ", not %zu", next, mask.offset + at, count);
        if (mask.stored)
            continue;
        fd_uniforms(uniforms, &mask, mask.offset + at, run);
        for (size_t i = 0; i < run; i++)
            CHECK(uniforms[i] == fd_uniform32(mask.seed, mask.stream, mask.offset + at + i), "uniform %zu of a run at %" PRIu64, i,
                  mask.offset + at);
    }
    free((void *)mask.stored);
}

static void check_blocks(void)
{
    size_t blocks = 1 + (size_t)below(40);
    uint64_t seed = draw_number(), stream = draw_number(), first = draw_offset(40 * 256) / 256;
    uint64_t threshold = fd_threshold(draw_p(&(fd_source){0}));
    if (threshold == 0 || threshold >> 32)
        return;
    uint64_t *words = memory((blocks + 1) * 32);
    fd_pending none = {0};
    fd_kernels_in_use()->keep_blocks(words, blocks, first, seed, stream, threshold, (fd_prefetch){0}, &none);
    for (uint64_t i = 0; i < blocks * 256; i++)
        CHECK((int)(words[i / 64] >> (i % 64) & 1) == fd_keep(seed, stream, first * 256 + i, threshold),
              "element %" PRIu64 " of %zu blocks from %" PRIu64, i, blocks, first);
    free(words);
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
            const enum fd_dtype dtype = (enum fd_dtype)(i % FD_DTYPES);
            check_bits();
            check_blocks();
            if (i % 8 == 0)
                check_runs();
            check_array((enum fd_op)(i / FD_DTYPES % (FD_UNIFORM + 1)), dtype);
            check_losses((enum fd_loss)(i / FD_DTYPES % FD_LOSSES), dtype);
            check_softmax(dtype);
            check_row_sums(dtype);
            check_max_norm(dtype);
            check_samples(dtype, i / FD_DTYPES % 2);
        }
        for (int dtype = 0; dtype < FD_DTYPES && atoi(argv[2]); dtype++) {
            check_large((enum fd_dtype)dtype);
            check_large_mean((enum fd_dtype)dtype);
        }
        printf("%s\n", *isa);
    }
    CHECK(fd_use_isa("no such") == -1, "an unknown name was taken");
    return 0;
}
