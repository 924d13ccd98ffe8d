/* The kernels in plain C. */
#include "../kernels.h"
#include "../stream.h"
#include "half.h"
#include "vec_scalar.h"

#define ISA scalar
#include "../rows.inc"
#include "../kernels.inc"
