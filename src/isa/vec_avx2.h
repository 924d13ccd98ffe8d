/* The vector vocabulary on AVX2 with F16C: the list and the meaning of each name is in kernels.inc. */
#include <immintrin.h>

enum { LANES = 8, INTERLEAVE = 2, VF = 8, VD = 4 };

/* 8 calls as two vectors of 64-bit lanes, even and odd ones, with rubbish in the high halves: see vec_avx512.h. */
typedef struct { __m256i even, odd; } lanes;

static inline lanes lanes_set(uint32_t a)
{
    __m256i v = _mm256_set1_epi64x(a);
    return (lanes){v, v};
}

static inline lanes lanes_load(const uint32_t a[8])
{
    __m256i v = _mm256_loadu_si256((const __m256i *)a);
    return (lanes){v, _mm256_srli_epi64(v, 32)};
}

static inline lanes lanes_mul(lanes a, uint32_t m, lanes *high)
{
    __m256i k = _mm256_set1_epi64x(m);
    lanes low = {_mm256_mul_epu32(a.even, k), _mm256_mul_epu32(a.odd, k)};
    *high = (lanes){_mm256_srli_epi64(low.even, 32), _mm256_srli_epi64(low.odd, 32)};
    return low;
}

static inline lanes lanes_xor(lanes a, lanes b)
{
    return (lanes){_mm256_xor_si256(a.even, b.even), _mm256_xor_si256(a.odd, b.odd)};
}

static inline lanes lanes_xor3(lanes a, lanes b, uint32_t k)
{
    __m256i c = _mm256_set1_epi64x(k);
    return (lanes){_mm256_xor_si256(_mm256_xor_si256(b.even, c), a.even), _mm256_xor_si256(_mm256_xor_si256(b.odd, c), a.odd)};
}

static inline __m256i lanes_join(lanes a)  /* lane order, 8 x 32 bits */
{
    return _mm256_blend_epi32(a.even, _mm256_slli_epi64(a.odd, 32), 0xAA);
}

static inline void lanes_store(uint32_t out[8], lanes a)
{
    _mm256_storeu_si256((__m256i *)out, lanes_join(a));
}

static inline void lanes_compare(lanes a, uint8_t t, uint64_t *words, uint64_t *ties, size_t at)
{
    __m256i v = lanes_join(a), k = _mm256_set1_epi8((char)t);
    __m256i eq = _mm256_cmpeq_epi8(v, k), ge = _mm256_cmpeq_epi8(_mm256_max_epu8(v, k), v);
    uint32_t lt = ~(uint32_t)_mm256_movemask_epi8(ge), tie = (uint32_t)_mm256_movemask_epi8(eq);
    memcpy((char *)words + 4 * at, &lt, 4);
    memcpy((char *)ties + 4 * at, &tie, 4);
}

typedef __m256 vf;
typedef __m256d vd;

static inline vf vf_set(float a) { return _mm256_set1_ps(a); }
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline void vf_stream(float *p, vf a) { _mm256_stream_ps(p, a); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_sum(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_where_positive(vf a, vf b) { return _mm256_and_ps(a, _mm256_cmp_ps(b, _mm256_setzero_ps(), _CMP_NLE_UQ)); }
static inline vf vf_keep(vf a, uint64_t bits)
{
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i m = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), bit), bit);
    return _mm256_and_ps(a, _mm256_castsi256_ps(m));
}
static inline vf vf_sum_kept(vf a, vf b, uint64_t bits) { return vf_sum(a, vf_keep(b, bits)); }

static inline vd vd_set(double a) { return _mm256_set1_pd(a); }
static inline vd vd_load(const double *p) { return _mm256_loadu_pd(p); }
static inline void vd_store(double *p, vd a) { _mm256_storeu_pd(p, a); }
static inline void vd_stream(double *p, vd a) { _mm256_stream_pd(p, a); }
static inline vd vd_mul(vd a, vd b) { return _mm256_mul_pd(a, b); }
static inline vd vd_sum(vd a, vd b) { return _mm256_add_pd(a, b); }
static inline vd vd_where_positive(vd a, vd b) { return _mm256_and_pd(a, _mm256_cmp_pd(b, _mm256_setzero_pd(), _CMP_NLE_UQ)); }
static inline vd vd_keep(vd a, uint64_t bits)
{
    const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
    __m256i m = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x((long long)bits), bit), bit);
    return _mm256_and_pd(a, _mm256_castsi256_pd(m));
}
static inline vd vd_sum_kept(vd a, vd b, uint64_t bits) { return vd_sum(a, vd_keep(b, bits)); }

static inline vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

static inline __m128i vf_to_f16(vf a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
static inline void vf_store_f16(uint16_t *p, vf a) { _mm_storeu_si128((__m128i *)p, vf_to_f16(a)); }
static inline void vf_stream_f16(uint16_t *p, vf a) { _mm_stream_si128((__m128i *)p, vf_to_f16(a)); }

static inline vf vf_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

static inline __m128i vf_to_bf16(vf a)
{
    __m256i v = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(v, 16), _mm256_set1_epi32(1));
    __m256i even = _mm256_add_epi32(v, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    __m256i quiet = _mm256_or_si256(v, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(even, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
static inline void vf_store_bf16(uint16_t *p, vf a) { _mm_storeu_si128((__m128i *)p, vf_to_bf16(a)); }
static inline void vf_stream_bf16(uint16_t *p, vf a) { _mm_stream_si128((__m128i *)p, vf_to_bf16(a)); }

/* -- for rows.inc -- */
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_fms(vf a, vf b, vf c) { return _mm256_fmsub_ps(a, b, c); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_scale2(vf a, vf n)  /* 2**n: n as an integer in the low bits of n + 1.5 * 2**23, moved to the exponent */
{
    __m256i bits = _mm256_castps_si256(_mm256_add_ps(n, _mm256_set1_ps(0x1.8p23f)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(power)), _mm256_cmp_ps(n, _mm256_set1_ps(-126), _CMP_NLT_UQ));
}

static inline vf vf_lift(vf a, vf t)
{
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
static inline vf vf_choose(vf c, vf a, vf b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(c, _mm256_setzero_ps(), _CMP_LT_OQ)); }

static inline vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
static inline vd vd_fms(vd a, vd b, vd c) { return _mm256_fmsub_pd(a, b, c); }
static inline vd vd_sub(vd a, vd b) { return _mm256_sub_pd(a, b); }
static inline vd vd_div(vd a, vd b) { return _mm256_div_pd(a, b); }
static inline vd vd_max(vd a, vd b) { return _mm256_max_pd(a, b); }
static inline vd vd_min(vd a, vd b) { return _mm256_min_pd(a, b); }
static inline vd vd_round(vd a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vd vd_scale2(vd a, vd n)
{
    __m256i bits = _mm256_castpd_si256(_mm256_add_pd(n, _mm256_set1_pd(0x1.8p52)));
    __m256i power = _mm256_slli_epi64(_mm256_add_epi64(bits, _mm256_set1_epi64x(1023)), 52);
    return _mm256_and_pd(_mm256_mul_pd(a, _mm256_castsi256_pd(power)), _mm256_cmp_pd(n, _mm256_set1_pd(-1022), _CMP_NLT_UQ));
}
static inline vd vd_lift(vd a, vd t)
{
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), _mm256_slli_epi64(_mm256_castpd_si256(t), 52)));
}
static inline vd vd_choose(vd c, vd a, vd b) { return _mm256_blendv_pd(b, a, _mm256_cmp_pd(c, _mm256_setzero_pd(), _CMP_LT_OQ)); }
