/* The kernels for AArch64, where NEON is always there. */
#if defined(__aarch64__)
#include "../kernels.h"
#include "../stream.h"
#include "half.h"
#include "vec_neon.h"

#define ISA neon
#include "../rows.inc"
#include "../kernels.inc"
#endif
