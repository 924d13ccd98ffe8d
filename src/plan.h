/* How an elementwise job is walked: computed from the job, and read by whoever runs it. */
#ifndef FASTDROP_PLAN_H
#define FASTDROP_PLAN_H

#include "fastdrop.h"
#include "threads.h"

enum {
    FD_ALONG = 256,   /* a crossed run: 4 squares, long enough for the prefetcher */
    FD_ACROSS = 512,  /* runs beside it: two in three blocks of each row are whole */
};

typedef struct {
    const fd_elementwise *job;
    int ndim;
    fd_axis axis[FD_MAX_NDIM];          /* the job's, without those of one element, in y's memory order, merged */
    int64_t item;                       /* bytes of an element of y */
    int64_t size, units;                /* elements; pieces of work of about a tile */
    int64_t rows, tiles, rows_a_unit;
    uint64_t last;                      /* the highest index of the mask that is looked at */
    int uniforms;                       /* the op takes them instead of bits */
    int ahead;                          /* bits for the next rows are made with those of one: see bits.h */
    int nontemporal;
    int packs;                          /* an array is not consecutive along the run: it goes through a tile on the stack */
    int overlaps;                       /* the op of a run is done while the bits of the next are made */
    int distance;                       /* x is near (0), in some cache (1) or in memory (2) */
    int crossed, column_axis, run_axis; /* runs cross the mask's order: axes of columns, then of runs, */
    int64_t columns, run;               /* and their lengths */
    int joined;                         /* where one run ends the next begins */
} fd_plan;

void fd_plan_elementwise(fd_plan *plan, const fd_elementwise *job);

fd_work fd_elementwise_work(const fd_plan *plan);

#endif
