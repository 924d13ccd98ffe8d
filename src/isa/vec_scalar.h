/* The vector vocabulary in plain C, for any machine: the list and the meaning of each name is in kernels.inc. */
enum { LANES = 4, INTERLEAVE = 1, VF = 4, VD = 4 };

typedef struct { uint32_t v[4]; } lanes;

static inline lanes lanes_set(uint32_t a) { return (lanes){{a, a, a, a}}; }

static inline lanes lanes_load(const uint32_t a[4]) { return (lanes){{a[0], a[1], a[2], a[3]}}; }

static inline lanes lanes_mul(lanes a, uint32_t m, lanes *high)
{
    lanes low;
    for (int i = 0; i < 4; i++) {
        uint64_t product = (uint64_t)a.v[i] * m;
        low.v[i] = (uint32_t)product;
        high->v[i] = (uint32_t)(product >> 32);
    }
    return low;
}

static inline lanes lanes_xor(lanes a, lanes b)
{
    return (lanes){{a.v[0] ^ b.v[0], a.v[1] ^ b.v[1], a.v[2] ^ b.v[2], a.v[3] ^ b.v[3]}};
}

static inline lanes lanes_xor3(lanes a, lanes b, uint32_t k)
{
    return lanes_xor(lanes_xor(a, b), lanes_set(k));
}

static inline void lanes_store(uint32_t out[4], lanes a)
{
    for (int i = 0; i < 4; i++)
        out[i] = a.v[i];
}

static inline void lanes_compare(lanes a, uint8_t t, uint64_t *words, uint64_t *ties, size_t at)
{
    uint64_t lt = 0, eq = 0;
    for (int i = 0; i < 16; i++) {
        uint32_t byte = a.v[i >> 2] >> (8 * (i & 3)) & 255;
        lt |= (uint64_t)(byte < t) << i;
        eq |= (uint64_t)(byte == t) << i;
    }
    unsigned shift = 16 * (at & 3);
    words[at >> 2] = (shift ? words[at >> 2] : 0) | lt << shift;  /* quarters come in order */
    ties[at >> 2] = (shift ? ties[at >> 2] : 0) | eq << shift;
}

typedef int32_t integers __attribute__((vector_size(16)));
typedef uint16_t halves __attribute__((vector_size(8)));

#define VEC vf
#define S float
#define WORD uint32_t
#define MAGIC 0x1.8p23f
#define BIAS 127
#define MANTISSA 23
#define LANE_BITS {1, 2, 4, 8}
#include "vec_scalar_of.h"
#undef VEC
#undef S
#undef WORD
#undef MAGIC
#undef BIAS
#undef MANTISSA
#undef LANE_BITS

#define VEC vd
#define S double
#define WORD uint64_t
#define MAGIC 0x1.8p52
#define BIAS 1023
#define MANTISSA 52
#define LANE_BITS {1, 1, 2, 2}
#include "vec_scalar_of.h"
#undef VEC
#undef S
#undef WORD
#undef MAGIC
#undef BIAS
#undef MANTISSA
#undef LANE_BITS

/* -- float16 and bfloat16, as in half.h -- */

static inline vf_words load_halves(const uint16_t *p)
{
    halves h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vf_words);
}

static inline void store_halves(uint16_t *p, vf_words a)
{
    const halves h = __builtin_convertvector(a, halves);
    memcpy(p, &h, sizeof h);
}

static inline vf_words select_words(integers where, vf_words a, vf_words b) { return ((vf_words)where & a) | (~(vf_words)where & b); }

static inline vf vf_load_f16(const uint16_t *p)
{
    const vf_words h = load_halves(p), body = h & 0x7FFF;
    const integers size = (integers)body;
    const vf_words special = select_words(size > 0x7C00, 0x7FC00000 | body << 13, (vf_words){0} + 0x7F800000);
    const vf_words small = (vf_words)(__builtin_convertvector(size, vf_register) * 0x1p-24f);
    const vf_words finite = select_words(size < 0x400, small, (body << 13) + 0x38000000);
    return (vf){{(vf_register)(select_words(size < 0x7C00, finite, special) | (h & 0x8000) << 16)}};
}
static inline void vf_store_f16(uint16_t *p, vf a)
{
    const vf_words u = (vf_words)a.v[0], body = u & 0x7FFFFFFF;
    const integers size = (integers)body;
    const vf_words special = select_words(size > 0x7F800000, 0x7E00 | (body >> 13 & 0x1FF), (vf_words){0} + 0x7C00);
    const vf_words small = (vf_words)((vf_register)body + 0.5f) - 0x3F000000, normal = (body + 0xFFF + (body >> 13 & 1) - 0x38000000) >> 13;
    const vf_words finite = select_words(size < 0x38800000, small, normal);
    store_halves(p, select_words(size < 0x477FF000, finite, special) | (u >> 16 & 0x8000));
}
static inline void vf_stream_f16(uint16_t *p, vf a) { vf_store_f16(p, a); }

static inline vf vf_load_bf16(const uint16_t *p) { return (vf){{(vf_register)(load_halves(p) << 16)}}; }
static inline void vf_store_bf16(uint16_t *p, vf a)
{
    const vf_words u = (vf_words)a.v[0];
    store_halves(p, select_words(a.v[0] == a.v[0], u + 0x7FFF + (u >> 16 & 1), u | 0x400000) >> 16);
}
static inline void vf_stream_bf16(uint16_t *p, vf a) { vf_store_bf16(p, a); }
