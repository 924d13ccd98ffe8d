/* The kernels for x86-64 with AVX-512 F, BW, VL and DQ; the pragma stands in for build flags, which setuptools has per module only. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#endif
#include "../kernels.h"
#include "../stream.h"
#include "half.h"
#include "vec_avx512.h"

#define ISA avx512
#include "../rows.inc"
#include "../kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
