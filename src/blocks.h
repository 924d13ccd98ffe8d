/* Memory for large fresh outputs: aligned, in huge pages, and kept for the next one when freed. */
#ifndef FASTDROP_BLOCKS_H
#define FASTDROP_BLOCKS_H

#include <stddef.h>

enum { FD_BLOCK_UNIT = 2 << 20 };  /* blocks are whole huge pages */

void *fd_block_take(size_t bytes);             /* NULL: none to be had, or not on this system */
void fd_block_give(void *start, size_t bytes); /* the same number of bytes */
void fd_blocks_limit(size_t bytes);            /* how much freed memory may be kept; 0 keeps, and takes, none */
size_t fd_blocks_kept(void);
size_t fd_blocks_release(void);               /* gives all that is kept to the system; bytes */
void fd_blocks_after_fork(void);              /* to be called in a forked child */

#endif
