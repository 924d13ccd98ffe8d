/* The kernels in use, for the other files here. */
#ifndef FASTDROP_DISPATCH_H
#define FASTDROP_DISPATCH_H

#include "kernels.h"

extern const fd_kernels *fd_kernels_in_use;

#endif
