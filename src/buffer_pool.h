/* Memory for large fresh outputs: aligned, in huge pages, and kept for the next one when freed. */
#ifndef FASTDROP_BUFFER_POOL_H
#define FASTDROP_BUFFER_POOL_H

#include <stddef.h>

enum { FD_PAGE = 2 << 20 };  /* buffers are whole huge pages */

void *fd_pool_take(size_t bytes);             /* NULL: none to be had, or not on this system */
void fd_pool_give(void *start, size_t bytes); /* the same number of bytes */
void fd_pool_limit(size_t bytes);            /* how much freed memory may be kept; 0 keeps, and takes, none */
size_t fd_pool_kept(void);
size_t fd_pool_release(void);               /* gives all that is kept to the system; bytes */
void fd_pool_after_fork(void);              /* to be called in a forked child */

#endif
