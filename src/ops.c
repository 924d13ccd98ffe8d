/* What ops.def says, for callers who choose an operation by its name. */
#include "fastdrop.h"

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
