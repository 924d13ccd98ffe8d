/* The vector vocabulary on AVX-512 (F, BW, VL, DQ): the list and the meaning of each name is in kernels.inc. */
#include <immintrin.h>

enum { LANES = 16, INTERLEAVE = 2, VF = 16, VD = 8 };

/* 16 calls as two vectors of 64-bit lanes, even and odd ones: what vpmuludq eats and leaves.  The high halves hold
 * rubbish between rounds, which it ignores: this saves the blends that packed 32-bit lanes would need. */
typedef struct { __m512i even, odd; } lanes;

static inline lanes lanes_set(uint32_t a)
{
    __m512i v = _mm512_set1_epi64(a);
    return (lanes){v, v};
}

static inline lanes lanes_load(const uint32_t a[16])
{
    __m512i v = _mm512_loadu_si512(a);
    return (lanes){v, _mm512_srli_epi64(v, 32)};
}

static inline lanes lanes_mul(lanes a, uint32_t m, lanes *high)
{
    __m512i k = _mm512_set1_epi64(m);
    lanes low = {_mm512_mul_epu32(a.even, k), _mm512_mul_epu32(a.odd, k)};
    *high = (lanes){_mm512_srli_epi64(low.even, 32), _mm512_srli_epi64(low.odd, 32)};
    return low;
}

static inline lanes lanes_xor(lanes a, lanes b)
{
    return (lanes){_mm512_xor_si512(a.even, b.even), _mm512_xor_si512(a.odd, b.odd)};
}

static inline lanes lanes_xor3(lanes a, lanes b, uint32_t k)
{
    __m512i c = _mm512_set1_epi64(k);
    return (lanes){_mm512_ternarylogic_epi64(a.even, b.even, c, 0x96), _mm512_ternarylogic_epi64(a.odd, b.odd, c, 0x96)};
}

static inline __m512i lanes_join(lanes a)  /* lane order, 16 x 32 bits */
{
    return _mm512_mask_shuffle_epi32(a.even, 0xAAAA, a.odd, _MM_PERM_CCAA);
}

static inline void lanes_store(uint32_t out[16], lanes a)
{
    _mm512_storeu_si512(out, lanes_join(a));
}

static inline void lanes_compare(lanes a, uint8_t t, uint64_t *words, uint64_t *ties, size_t at)
{
    __m512i v = lanes_join(a), k = _mm512_set1_epi8((char)t);
    words[at] = _cvtmask64_u64(_mm512_cmplt_epu8_mask(v, k));
    ties[at] = _cvtmask64_u64(_mm512_cmpeq_epu8_mask(v, k));
}

typedef __m512 vf;
typedef __m512d vd;

static inline vf vf_set(float a) { return _mm512_set1_ps(a); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline void vf_stream(float *p, vf a) { _mm512_stream_ps(p, a); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_sum(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_where_positive(vf a, vf b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(b, _mm512_setzero_ps(), _CMP_NLE_UQ), a);
}
static inline vf vf_keep(vf a, uint64_t bits) { return _mm512_maskz_mov_ps((__mmask16)bits, a); }
static inline vf vf_sum_kept(vf a, vf b, uint64_t bits) { return _mm512_mask_add_ps(a, (__mmask16)bits, a, b); }

static inline vd vd_set(double a) { return _mm512_set1_pd(a); }
static inline vd vd_load(const double *p) { return _mm512_loadu_pd(p); }
static inline void vd_store(double *p, vd a) { _mm512_storeu_pd(p, a); }
static inline void vd_stream(double *p, vd a) { _mm512_stream_pd(p, a); }
static inline vd vd_mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
static inline vd vd_sum(vd a, vd b) { return _mm512_add_pd(a, b); }
static inline vd vd_where_positive(vd a, vd b)
{
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(b, _mm512_setzero_pd(), _CMP_NLE_UQ), a);
}
static inline vd vd_keep(vd a, uint64_t bits) { return _mm512_maskz_mov_pd((__mmask8)bits, a); }
static inline vd vd_sum_kept(vd a, vd b, uint64_t bits) { return _mm512_mask_add_pd(a, (__mmask8)bits, a, b); }

static inline vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

static inline __m256i vf_to_f16(vf a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline void vf_store_f16(uint16_t *p, vf a) { _mm256_storeu_si256((__m256i *)p, vf_to_f16(a)); }
static inline void vf_stream_f16(uint16_t *p, vf a) { _mm256_stream_si256((__m256i *)p, vf_to_f16(a)); }

static inline vf vf_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

static inline __m256i vf_to_bf16(vf a)
{
    __m512i v = _mm512_castps_si512(a), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(v, 16), one);
    __m512i even = _mm512_add_epi32(v, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    even = _mm512_mask_or_epi32(even, nan, v, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(even, 16));
}
static inline void vf_store_bf16(uint16_t *p, vf a) { _mm256_storeu_si256((__m256i *)p, vf_to_bf16(a)); }
static inline void vf_stream_bf16(uint16_t *p, vf a) { _mm256_stream_si256((__m256i *)p, vf_to_bf16(a)); }

/* -- for rows.inc -- */
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_fms(vf a, vf b, vf c) { return _mm512_fmsub_ps(a, b, c); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_scale2(vf a, vf n)
{
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, _mm512_set1_ps(-126), _CMP_NLT_UQ), a, n);
}

static inline vf vf_lift(vf a, vf t) { return _mm512_scalef_ps(a, vf_sub(t, vf_set(0x1.8p23f))); }  /* one step, not two */
static inline vf vf_choose(vf c, vf a, vf b) { return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(c, _mm512_setzero_ps(), _CMP_LT_OQ), a); }

static inline vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
static inline vd vd_fms(vd a, vd b, vd c) { return _mm512_fmsub_pd(a, b, c); }
static inline vd vd_sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
static inline vd vd_div(vd a, vd b) { return _mm512_div_pd(a, b); }
static inline vd vd_max(vd a, vd b) { return _mm512_max_pd(a, b); }
static inline vd vd_min(vd a, vd b) { return _mm512_min_pd(a, b); }
static inline vd vd_round(vd a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vd vd_scale2(vd a, vd n)
{
    return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(n, _mm512_set1_pd(-1022), _CMP_NLT_UQ), a, n);
}
static inline vd vd_lift(vd a, vd t) { return _mm512_scalef_pd(a, vd_sub(t, vd_set(0x1.8p52))); }
static inline vd vd_choose(vd c, vd a, vd b) { return _mm512_mask_mov_pd(b, _mm512_cmp_pd_mask(c, _mm512_setzero_pd(), _CMP_LT_OQ), a); }

#define VEC_PARTS  /* the first n elements by a mask; where there are none, rows_of.inc copies them */
static inline __mmask16 vec_first(size_t n) { return (__mmask16)((1u << n) - 1); }
static inline vf vf_load_part(const float *p, size_t n, double fill) { return _mm512_mask_loadu_ps(vf_set((float)fill), vec_first(n), p); }
static inline void vf_store_part(float *p, vf a, size_t n) { _mm512_mask_storeu_ps(p, vec_first(n), a); }
static inline vd vd_load_part(const double *p, size_t n, double fill) { return _mm512_mask_loadu_pd(vd_set(fill), (__mmask8)vec_first(n), p); }
static inline void vd_store_part(double *p, vd a, size_t n) { _mm512_mask_storeu_pd(p, (__mmask8)vec_first(n), a); }

#define VEC_REDUCED  /* sums in double and maxima of the lanes, without going through memory; in the order of rows_of.inc */
static inline double vd_total(vd a)
{
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two));
}
static inline double vf_total(vf a)
{
    return vd_total(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))));
}
static inline float vf_highest(vf a) { return _mm512_reduce_max_ps(a); }
static inline double vd_highest(vd a) { return _mm512_reduce_max_pd(a); }
