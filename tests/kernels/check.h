/* What the files of the checking program share. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "dispatch.h"
#include "isa/half.h"
#include "plan.h"
#include "rows.h"
#include "samples.h"
#include "stream.h"

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s: ", fd_isa());                                                                         \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fprintf(stderr, "\n");                                                                                     \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* What a correct result is computed in: more digits than a double, so that formulas may be written plainly. */
typedef long double real;

/* Random numbers: the same in every run. */
uint64_t draw(void);
int64_t below(int64_t n);
int one_in(int64_t n);
double draw_uniform(void);
double draw_normal(void);
int64_t draw_length(int64_t most);         /* at or around the lengths of vectors, words, chunks and tiles */
uint64_t draw_number(void);                /* a seed or stream */
uint64_t draw_offset(uint64_t extent);     /* an index at or around a boundary, with room for `extent` more below 2**64 */
fd_source draw_mask(uint64_t extent);      /* of the generator, or stored bits: free(stored) */
double draw_p(const fd_source *mask);      /* 1 of the generator alone: no stored bit is kept then, since its scale is infinite */

void *memory(size_t bytes);                /* exactly so many, from the boundary of a cache line on */
int kept(const fd_source *mask, uint64_t index, double p);  /* the rule; index counts from the mask's start */

/* Numbers of a dtype. */
extern const int64_t ITEM[FD_DTYPES];
double get(enum fd_dtype dtype, const void *at);
void put(enum fd_dtype dtype, void *at, double value);
double rounded(enum fd_dtype dtype, double value);  /* to what the dtype is computed in: double for FD_F64, else float */
double unit(enum fd_dtype dtype);                   /* 2**-23, or 2**-52 for FD_F64: a last bit of that */
int close_to(enum fd_dtype dtype, double got, double want, double error);  /* with one more rounding, to the dtype */

/* Rows of a dtype, in memory that ends with the last element of the last row. */
typedef struct {
    enum fd_dtype dtype;
    int64_t rows, n, step;  /* step: bytes from row to row, of either sign */
    char *owner, *data;     /* data: row 0 */
    size_t bytes;
} matrix;

matrix new_rows(enum fd_dtype dtype, int64_t rows, int64_t n, int consecutive);
matrix like_rows(const matrix *m);         /* the same layout */
void *element(const matrix *m, int64_t row, int64_t i);
double *values(const matrix *m);           /* all, row after row */
char *bytes_of(const matrix *m);           /* a copy of its memory */

/* What lies between and before the rows is as it was. */
void check_gaps(const matrix *m, const char *before, const char *what);

void run_in_parts(const fd_work *work);    /* of some units each, last first */

void check_array(enum fd_op op, enum fd_dtype dtype);
void check_large(enum fd_dtype dtype);
void check_losses(enum fd_loss op, enum fd_dtype dtype);
void check_softmax(enum fd_dtype dtype);
void check_row_sums(enum fd_dtype dtype);
void check_max_norm(enum fd_dtype dtype);
void check_samples(enum fd_dtype dtype, int mean);
void check_large_mean(enum fd_dtype dtype);

#endif
