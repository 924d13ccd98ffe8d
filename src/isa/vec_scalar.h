/* The vector vocabulary in plain C, for any machine: the list and the meaning of each name is in kernels.inc. */
#include <math.h>

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

typedef struct { float v[4]; } vf;
typedef struct { double v[4]; } vd;

static inline vf vf_set(float a) { return (vf){{a, a, a, a}}; }
static inline vf vf_load(const float *p) { return (vf){{p[0], p[1], p[2], p[3]}}; }
static inline void vf_store(float *p, vf a) { memcpy(p, a.v, sizeof a.v); }
static inline void vf_stream(float *p, vf a) { vf_store(p, a); }
static inline vf vf_mul(vf a, vf b) { return (vf){{a.v[0] * b.v[0], a.v[1] * b.v[1], a.v[2] * b.v[2], a.v[3] * b.v[3]}}; }
static inline vf vf_sum(vf a, vf b) { return (vf){{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}}; }
static inline vf vf_where_positive(vf a, vf b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = b.v[i] <= 0.0f ? 0.0f : a.v[i];
    return a;
}
static inline vf vf_keep(vf a, uint64_t bits)
{
    for (int i = 0; i < 4; i++)  /* by bit masks: a branch would be mispredicted every other time */
        a.v[i] = bits_float(float_bits(a.v[i]) & (uint32_t)-(int32_t)(bits >> i & 1));
    return a;
}
static inline vf vf_sum_kept(vf a, vf b, uint64_t bits) { return vf_sum(a, vf_keep(b, bits)); }

static inline vd vd_set(double a) { return (vd){{a, a, a, a}}; }
static inline vd vd_load(const double *p) { return (vd){{p[0], p[1], p[2], p[3]}}; }
static inline void vd_store(double *p, vd a) { memcpy(p, a.v, sizeof a.v); }
static inline void vd_stream(double *p, vd a) { vd_store(p, a); }
static inline vd vd_mul(vd a, vd b) { return (vd){{a.v[0] * b.v[0], a.v[1] * b.v[1], a.v[2] * b.v[2], a.v[3] * b.v[3]}}; }
static inline vd vd_sum(vd a, vd b) { return (vd){{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}}; }
static inline vd vd_where_positive(vd a, vd b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = b.v[i] <= 0.0 ? 0.0 : a.v[i];
    return a;
}
static inline vd vd_keep(vd a, uint64_t bits)
{
    for (int i = 0; i < 4; i++) {
        uint64_t u;
        memcpy(&u, &a.v[i], 8);
        u &= (uint64_t)-(int64_t)(bits >> i & 1);
        memcpy(&a.v[i], &u, 8);
    }
    return a;
}
static inline vd vd_sum_kept(vd a, vd b, uint64_t bits) { return vd_sum(a, vd_keep(b, bits)); }

static inline vf vf_load_f16(const uint16_t *p)
{
    return (vf){{f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])}};
}
static inline void vf_store_f16(uint16_t *p, vf a)
{
    for (int i = 0; i < 4; i++)
        p[i] = f32_to_f16(a.v[i]);
}
static inline void vf_stream_f16(uint16_t *p, vf a) { vf_store_f16(p, a); }

static inline vf vf_load_bf16(const uint16_t *p)
{
    return (vf){{bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])}};
}
static inline void vf_store_bf16(uint16_t *p, vf a)
{
    for (int i = 0; i < 4; i++)
        p[i] = f32_to_bf16(a.v[i]);
}
static inline void vf_stream_bf16(uint16_t *p, vf a) { vf_store_bf16(p, a); }

/* -- for rows.inc -- */
#define VEC vf
#define S float
#define BITS uint32_t
#define ROUND rintf
#define MAGIC 0x1.8p23f
#define BIAS 127
#define MANTISSA 23
#include "vec_scalar_of.h"
#undef VEC
#undef S
#undef BITS
#undef ROUND
#undef MAGIC
#undef BIAS
#undef MANTISSA

#define VEC vd
#define S double
#define BITS uint64_t
#define ROUND rint
#define MAGIC 0x1.8p52
#define BIAS 1023
#define MANTISSA 52
#include "vec_scalar_of.h"
#undef VEC
#undef S
#undef BITS
#undef ROUND
#undef MAGIC
#undef BIAS
#undef MANTISSA
