/* The vector vocabulary on AArch64 NEON: the list and the meaning of each name is in kernels.inc. */
#include <arm_neon.h>

enum { LANES = 4, INTERLEAVE = 2, VF = 4, VD = 2 };

typedef uint32x4_t lanes;  /* umull and uzp give packed low and high halves directly */

static inline lanes lanes_set(uint32_t a) { return vdupq_n_u32(a); }
static inline lanes lanes_load(const uint32_t a[4]) { return vld1q_u32(a); }

static inline lanes lanes_mul(lanes a, uint32_t m, lanes *high)
{
    uint32x4_t k = vdupq_n_u32(m);
    uint32x4_t p = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(k)));
    uint32x4_t q = vreinterpretq_u32_u64(vmull_high_u32(a, k));
    *high = vuzp2q_u32(p, q);
    return vuzp1q_u32(p, q);
}

static inline lanes lanes_xor(lanes a, lanes b) { return veorq_u32(a, b); }
static inline lanes lanes_xor3(lanes a, lanes b, uint32_t k) { return veorq_u32(a, veorq_u32(b, vdupq_n_u32(k))); }
static inline void lanes_store(uint32_t out[4], lanes a) { vst1q_u32(out, a); }

static inline uint16_t movemask(uint8x16_t m)
{
    const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t b = vandq_u8(m, bit);
    return (uint16_t)(vaddv_u8(vget_low_u8(b)) | vaddv_u8(vget_high_u8(b)) << 8);
}

static inline void lanes_compare(lanes a, uint8_t t, uint64_t *words, uint64_t *ties, size_t at)
{
    uint8x16_t v = vreinterpretq_u8_u32(a), k = vdupq_n_u8(t);
    uint16_t lt = movemask(vcltq_u8(v, k)), tie = movemask(vceqq_u8(v, k));
    memcpy((char *)words + 2 * at, &lt, 2);
    memcpy((char *)ties + 2 * at, &tie, 2);
}

typedef float32x4_t vf;
typedef float64x2_t vd;

static inline vf vf_set(float a) { return vdupq_n_f32(a); }
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }
static inline void vf_stream(float *p, vf a) { vst1q_f32(p, a); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_sum(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_where_positive(vf a, vf b)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vclezq_f32(b)));
}
static inline vf vf_keep(vf a, uint64_t bits)
{
    const uint32x4_t bit = {1, 2, 4, 8};
    uint32x4_t m = vtstq_u32(vdupq_n_u32((uint32_t)bits), bit);
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), m));
}
static inline vf vf_sum_kept(vf a, vf b, uint64_t bits) { return vf_sum(a, vf_keep(b, bits)); }

static inline vd vd_set(double a) { return vdupq_n_f64(a); }
static inline vd vd_load(const double *p) { return vld1q_f64(p); }
static inline void vd_store(double *p, vd a) { vst1q_f64(p, a); }
static inline void vd_stream(double *p, vd a) { vst1q_f64(p, a); }
static inline vd vd_mul(vd a, vd b) { return vmulq_f64(a, b); }
static inline vd vd_sum(vd a, vd b) { return vaddq_f64(a, b); }
static inline vd vd_where_positive(vd a, vd b)
{
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(a), vclezq_f64(b)));
}
static inline vd vd_keep(vd a, uint64_t bits)
{
    const uint64x2_t bit = {1, 2};
    uint64x2_t m = vtstq_u64(vdupq_n_u64(bits), bit);
    return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(a), m));
}
static inline vd vd_sum_kept(vd a, vd b, uint64_t bits) { return vd_sum(a, vd_keep(b, bits)); }

static inline vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline void vf_store_f16(uint16_t *p, vf a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
static inline void vf_stream_f16(uint16_t *p, vf a) { vf_store_f16(p, a); }

static inline vf vf_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline void vf_store_bf16(uint16_t *p, vf a)
{
    uint32x4_t v = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(v, 16), vdupq_n_u32(1));
    uint32x4_t even = vaddq_u32(v, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    uint32x4_t number = vceqq_f32(a, a);
    vst1_u16(p, vshrn_n_u32(vbslq_u32(number, even, vorrq_u32(v, vdupq_n_u32(0x400000))), 16));
}
static inline void vf_stream_bf16(uint16_t *p, vf a) { vf_store_bf16(p, a); }

/* -- for rows.inc; max and min by selection: vmaxq would give NaN where either is -- */
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_fms(vf a, vf b, vf c) { return vfmaq_f32(vnegq_f32(c), a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vf vf_round(vf a) { return vrndnq_f32(a); }
static inline vf vf_scale2(vf a, vf n)
{
    float32x4_t power = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
    uint32x4_t under = vcltq_f32(n, vdupq_n_f32(-126));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(vmulq_f32(a, power)), under));
}

static inline vf vf_lift(vf a, vf t)
{
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vreinterpretq_s32_f32(t), 23)));
}
static inline vf vf_choose(vf c, vf a, vf b) { return vbslq_f32(vcltq_f32(c, vdupq_n_f32(0)), a, b); }

static inline vd vd_fma(vd a, vd b, vd c) { return vfmaq_f64(c, a, b); }
static inline vd vd_fms(vd a, vd b, vd c) { return vfmaq_f64(vnegq_f64(c), a, b); }
static inline vd vd_sub(vd a, vd b) { return vsubq_f64(a, b); }
static inline vd vd_div(vd a, vd b) { return vdivq_f64(a, b); }
static inline vd vd_max(vd a, vd b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
static inline vd vd_min(vd a, vd b) { return vbslq_f64(vcltq_f64(a, b), a, b); }
static inline vd vd_round(vd a) { return vrndnq_f64(a); }
static inline vd vd_scale2(vd a, vd n)
{
    float64x2_t power = vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vcvtnq_s64_f64(n), vdupq_n_s64(1023)), 52));
    uint64x2_t under = vcltq_f64(n, vdupq_n_f64(-1022));
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(vmulq_f64(a, power)), under));
}
static inline vd vd_lift(vd a, vd t)
{
    return vreinterpretq_f64_s64(vaddq_s64(vreinterpretq_s64_f64(a), vshlq_n_s64(vreinterpretq_s64_f64(t), 52)));
}
static inline vd vd_choose(vd c, vd a, vd b) { return vbslq_f64(vcltq_f64(c, vdupq_n_f64(0)), a, b); }
