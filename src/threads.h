/* Work shared among threads: the only file here that knows of any. */
#ifndef FASTDROP_THREADS_H
#define FASTDROP_THREADS_H

#include <stdint.h>

/* Work of several units: run(job, first, last) does units first .. last - 1, with the same result for any cut of them. */
typedef struct {
    void (*run)(const void *job, int64_t first, int64_t last);
    const void *job;
    int64_t units;
    int nontemporal;  /* it stores past the cache: a fence must follow before another thread reads */
} fd_work;

/* Does a range of units on this thread, in the floating-point environment that kernels expect. */
void fd_work_on(const fd_work *work, int64_t first, int64_t last);

/* Does it all, on this thread and as many others as make up `threads`. Where fewer are to be had, fewer work: the ranges are
 * the same. */
void fd_share(const fd_work *work, int threads);

void fd_threads_after_fork(void);  /* to be called in a forked child: the other threads are not there */

#endif
