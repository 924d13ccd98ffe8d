/* A job shared among threads: the only file here that knows of any. */
#ifndef FASTDROP_THREADS_H
#define FASTDROP_THREADS_H

#include <stdint.h>

typedef void (*fd_range)(const void *job, int64_t first, int64_t end);

/* Runs job's units 0 .. units - 1, cut into ranges, on the calling thread and on as many others as make up `threads`. Where
 * fewer are to be had, fewer work: the ranges are the same. */
void fd_share(fd_range run, const void *job, int64_t units, int threads);

void fd_threads_after_fork(void);  /* to be called in a forked child: the other threads are not there */

#endif
