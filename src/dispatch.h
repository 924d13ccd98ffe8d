/* The kernels in use, for the other files here. */
#ifndef FASTDROP_DISPATCH_H
#define FASTDROP_DISPATCH_H

#include "kernels.h"

const fd_kernels *fd_kernels_in_use(void);

#endif
