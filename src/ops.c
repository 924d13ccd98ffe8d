/* What dtypes.def, ops.def and losses.def say, for callers who choose by name. */
#include "fastdrop.h"

const char *fd_dtype_name(enum fd_dtype dtype)
{
    static const char *const name[FD_DTYPES] = {
#define FD_DTYPE(NAME, name, numpy, T, S, TO_S, FROM_S, half, least) [FD_##NAME] = numpy,
#include "dtypes.def"
    };
    return name[dtype];
}

const char *fd_op_name(enum fd_op op)
{
    static const char *const name[FD_OPS] = {
#define FD_OPERATION(NAME, name, inputs, residual, value, size) [FD_##NAME] = #name,
#include "ops.def"
    };
    return name[op];
}

int fd_op_inputs(enum fd_op op)
{
    static const int inputs[FD_OPS] = {
#define FD_OPERATION(NAME, name, inputs, residual, value, size) [FD_##NAME] = inputs,
#include "ops.def"
    };
    return inputs[op];
}

const fd_loss_facts fd_loss_table[FD_LOSSES] = {
#define FD_LOSS(NAME, name, sides, labels, forward, reverse, middle) {#name, sides, labels, forward, reverse, middle},
#include "losses.def"
};
