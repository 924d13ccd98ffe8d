/* The kernels for x86-64 with AVX2, F16C and FMA; the pragma stands in for build flags, which setuptools has per module only. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma")
#endif
#include "../kernels.h"
#include "../stream.h"
#include "half.h"
#include "vec_avx2.h"

#define ISA avx2
#include "../rows.inc"
#include "../kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
