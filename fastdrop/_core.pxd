# The C interface as _core.pyx uses it: src/fastdrop.h and what beside it is not for other programs.
from libc.stdint cimport int64_t, uint64_t, uint8_t

cdef extern from "fastdrop.h" nogil:
    enum: FD_MAX_NDIM, FD_INPUTS, FD_SERIAL, FD_NONTEMPORAL
    cdef enum fd_dtype:
        FD_F32, FD_F64, FD_F16, FD_DTYPES
    cdef enum fd_op:
        FD_APPLY, FD_OPS, FD_KEEP
    const char *fd_dtype_name(fd_dtype dtype)
    const char *fd_op_name(fd_op op)
    int fd_op_inputs(fd_op op)
    ctypedef struct fd_source:
        uint64_t seed, stream, offset
        const uint8_t *stored
    ctypedef struct fd_axis:
        int64_t n, y, mask, p
        int64_t *in_ "in"
    ctypedef struct fd_elementwise:
        fd_op op
        fd_dtype dtype
        fd_source mask
        void *y
        const void **in_ "in"
        const double *p
        int ndim
        fd_axis *axis
    void fd_run_elementwise(const fd_elementwise *job, int threads)
    void fd_keep_bits(uint8_t *out, fd_source mask, double p, int64_t n, int threads)

    cdef enum fd_loss:
        FD_LOSSES
    ctypedef struct fd_loss_facts:
        const char *name
        int sides, labels
        double forward, reverse, middle
    const fd_loss_facts *fd_loss_table
    ctypedef struct fd_losses:
        fd_dtype dtype
        fd_loss op
        int64_t rows, n, a_step, b_step, da_step, db_step, target_step
        const char *a
        const char *b
        const char *target
        char *da
        char *db
        const int64_t *label
        const uint8_t *skip
        double inv_temperature, weight, alpha, smoothing
        double *loss
        double *kl
        int nontemporal
    void fd_run_losses(const fd_losses *job, int threads)
    ctypedef struct fd_softmax:
        fd_dtype dtype
        int ndim, nontemporal
        int64_t n, rows, p_step
        int64_t *shape
        int64_t *bias_step
        int64_t *allow_step
        const char *x
        const char *dy
        const char *bias
        const char *allow
        char *y
        double *logsumexp
        fd_source mask
        const double *p
    void fd_run_softmax(const fd_softmax *job, int threads)
    ctypedef struct fd_row_sums:
        fd_dtype dtype
        int64_t rows, n
        const char *x
        char *y
        void *total
        fd_source mask
        double p
        double *scratch
        int nontemporal
    int64_t fd_row_sums_parts(int64_t rows, int64_t n)
    void fd_run_row_sums(const fd_row_sums *job, int threads)
    ctypedef struct fd_max_norm:
        fd_dtype dtype
        char *w
        int64_t outer, n, inner
        double limit
    void fd_run_max_norm(const fd_max_norm *job, int threads)
    ctypedef struct fd_samples:
        fd_dtype dtype
        int mean
        fd_source mask
        void *y
        const void *x
        const double *p
        int64_t samples, rows, n, y_row, x_row, m_row, x_sample, m_sample, p_step, parts
        void *scratch
    int64_t fd_samples_parts(const fd_samples *job, int threads)
    size_t fd_samples_scratch(const fd_samples *job)
    void fd_run_samples(const fd_samples *job, int threads)

    const char *fd_isa()
    const char *const *fd_isa_found()
    int fd_use_isa(const char *name)

cdef extern from "plan.h" nogil:
    ctypedef struct fd_plan:
        int ndim, nontemporal, crossed, joined
        fd_axis *axis
        int64_t units, run, columns
    void fd_plan_elementwise(fd_plan *plan, const fd_elementwise *job)

cdef extern from "kernels.h" nogil:
    int64_t fd_item_size(fd_dtype dtype)

cdef extern from "threads.h" nogil:
    void fd_threads_after_fork()

cdef extern from "buffer_pool.h" nogil:
    enum: FD_PAGE
    void *fd_pool_take(size_t bytes)
    void fd_pool_give(void *start, size_t bytes)
    void fd_pool_limit(size_t bytes)
    size_t fd_pool_kept()
    size_t fd_pool_release()
    void fd_pool_after_fork()

cdef extern from "numpy/arrayobject.h":
    enum: NPY_HALF
