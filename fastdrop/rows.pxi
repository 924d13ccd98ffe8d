# Part of _core.pyx (one extension, one copy of the kernels): rows of arrays among threads.  Arguments have been checked by
# losses.py, attention.py and max_norm.py; here arrays of two dimensions become pointers and steps.  No maths.

cdef extern from "rows.h" nogil:
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
        int64_t rows, n
        const char *a
        const char *b
        char *da
        char *db
        int64_t a_step, b_step, da_step, db_step
        const int64_t *label
        const char *target
        int64_t target_step
        const uint8_t *skip
        double inverse_temperature, weight, alpha, smoothing
        double *loss
        double *kl
        int bypass
    void fd_losses_run(const fd_losses *k, int64_t first, int64_t end)
    ctypedef struct fd_softmax:
        fd_dtype dtype
        int ndim
        int64_t *shape
        int64_t n
        const char *x
        char *y
        const char *dy
        const char *bias
        const char *allow
        int64_t *bias_step
        int64_t *allow_step
        double *log_sum
        fd_source mask
        const double *p
        int64_t p_step, rows
        int bypass
    void fd_softmax_forward(const fd_softmax *k, int64_t first, int64_t end)
    void fd_softmax_backward(const fd_softmax *k, int64_t first, int64_t end)
    ctypedef struct fd_row_sums:
        fd_dtype dtype
        int64_t rows, n
        const char *x
        char *y
        fd_source mask
        double p
        int bypass
    void fd_row_sums_run(const fd_row_sums *k, int64_t first, int64_t end, double *sum)
    void fd_row_sums_total(const fd_row_sums *k, void *total, const double *sums, int64_t parts)
    ctypedef struct fd_max_norm:
        fd_dtype dtype
        char *w
        int64_t outer, n, inner
        double limit
    int64_t fd_max_norm_units(const fd_max_norm *k)
    void fd_max_norm_run(const fd_max_norm *k, int64_t first, int64_t end)

cdef enum:
    SERIAL_ROWS = 1 << 15  # elements, each of some ten times the work of a dropped one
    MOST_SUMS = 64         # parts whose rows are summed apart
    BYPASS_ROWS = 8 << 20  # bytes of results that no cache is likely to hold

LOSSES = {fd_loss_table[op].name.decode(): op for op in range(<int>FD_LOSSES)}
LOSS_FACTS = [fd_loss_table[op] for op in range(<int>FD_LOSSES)]  # as dicts, for a test that they are Python's


cdef void share_rows(fd_range run, const void *job, int64_t rows, int64_t size) noexcept:
    with nogil:
        fd_share(run, job, rows, threads if size >= SERIAL_ROWS else 1)


cdef char *data(cnp.ndarray a) noexcept:
    return NULL if a is None else <char *>cnp.PyArray_DATA(a)


cdef bint rows_alike(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Is x None, or of y's two axes and dtype, the last one consecutive?"""
    return x is None or (alike(x, y) and cnp.PyArray_NDIM(x) == 2
                         and (cnp.PyArray_DIM(x, 1) == 1 or cnp.PyArray_STRIDE(x, 1) == cnp.PyArray_ITEMSIZE(x)))


cdef bint one_a_row(cnp.ndarray v, int64_t rows, int64_t item) noexcept:
    """Is v None, or one consecutive number a row?"""
    return v is None or (cnp.PyArray_ISCARRAY_RO(v) and cnp.PyArray_SIZE(v) == rows and cnp.PyArray_ITEMSIZE(v) == item)


cdef void losses_range(const void *k, int64_t first, int64_t end) noexcept nogil:
    fd_losses_run(<const fd_losses *>k, first, end)


cdef void softmax_range(const void *k, int64_t first, int64_t end) noexcept nogil:
    if (<const fd_softmax *>k).dy is NULL:
        fd_softmax_forward(<const fd_softmax *>k, first, end)
    else:
        fd_softmax_backward(<const fd_softmax *>k, first, end)


cdef void max_norm_range(const void *k, int64_t first, int64_t end) noexcept nogil:
    fd_max_norm_run(<const fd_max_norm *>k, first, end)


def row_losses(op, cnp.ndarray a, cnp.ndarray b, cnp.ndarray da, cnp.ndarray db, cnp.ndarray label, cnp.ndarray target,
               cnp.ndarray skip, cnp.ndarray loss, cnp.ndarray kl, double temperature, double weight, double alpha,
               double smoothing):
    cdef fd_losses k
    k.dtype = dtype_of(a)
    k.op = <fd_loss><int>LOSSES[op]
    check((b is None) == (db is None) == (fd_loss_table[<int>k.op].sides == 1))
    check(rows_alike(a, a) and cnp.PyArray_SIZE(a) and rows_alike(b, a) and rows_alike(da, a) and rows_alike(db, a) and rows_alike(target, a))
    k.rows = cnp.PyArray_DIM(a, 0)
    k.n = cnp.PyArray_DIM(a, 1)
    check(one_a_row(label, k.rows, 8) and one_a_row(skip, k.rows, 1) and one_a_row(loss, k.rows, 8)
          and one_a_row(kl, k.rows, 8))
    k.a, k.b, k.da, k.db = data(a), data(b), data(da), data(db)
    k.a_step = cnp.PyArray_STRIDE(a, 0)
    k.b_step = 0 if b is None else cnp.PyArray_STRIDE(b, 0)
    k.da_step = cnp.PyArray_STRIDE(da, 0)
    k.db_step = 0 if db is None else cnp.PyArray_STRIDE(db, 0)
    k.label = <const int64_t *>data(label)
    k.target = data(target)
    k.target_step = 0 if target is None else cnp.PyArray_STRIDE(target, 0)
    k.skip = <const uint8_t *>data(skip)
    k.inverse_temperature = 1 / temperature
    k.weight, k.alpha, k.smoothing = weight, alpha, smoothing
    k.loss = <double *>data(loss)
    k.kl = <double *>data(kl)
    k.bypass = k.a != k.da and k.b != k.db and 2 * k.rows * k.n * cnp.PyArray_ITEMSIZE(a) >= BYPASS_ROWS
    share_rows(losses_range, &k, k.rows, k.rows * k.n)


def softmax_dropout(cnp.ndarray y, cnp.ndarray log_sum, cnp.ndarray dy, cnp.ndarray x, cnp.ndarray bias, cnp.ndarray allow,
                    mask, cnp.ndarray p):
    """Forward where dy is None, else backward with y for dx. bias and allow have x's dimensions, by broadcasting."""
    cdef fd_softmax k
    cdef int axis, last
    source(&k.mask, mask)
    k.dtype = dtype_of(x)
    last = cnp.PyArray_NDIM(x) - 1
    check(last >= 0 and cnp.PyArray_SIZE(x) and cnp.PyArray_ISCARRAY_RO(x) and cnp.PyArray_ISCARRAY(y) and alike(y, x)
          and (dy is None or (alike(dy, x) and cnp.PyArray_ISCARRAY_RO(dy)))
          and (bias is None or (cnp.PyArray_SAMESHAPE(bias, x) and cnp.PyArray_ISBEHAVED_RO(bias)))
          and (allow is None or cnp.PyArray_SAMESHAPE(allow, x))
          and cnp.PyArray_SIZE(log_sum) * cnp.PyArray_DIM(x, last) == cnp.PyArray_SIZE(x)
          and one_a_row(log_sum, cnp.PyArray_SIZE(log_sum), 8)
          and (one_a_row(p, 1, 8) or one_a_row(p, cnp.PyArray_SIZE(log_sum), 8)))
    k.ndim = last
    k.n = cnp.PyArray_DIM(x, last)
    k.rows = cnp.PyArray_SIZE(log_sum)
    for axis in range(last):
        k.shape[axis] = cnp.PyArray_DIM(x, axis)
        k.bias_step[axis] = 0 if bias is None else cnp.PyArray_STRIDE(bias, axis)
        k.allow_step[axis] = 0 if allow is None else cnp.PyArray_STRIDE(allow, axis)
    check_stored(&k.mask, mask, <uint64_t>cnp.PyArray_SIZE(x) - 1)
    k.x, k.y, k.dy, k.bias, k.allow = data(x), data(y), data(dy), data(bias), data(allow)
    k.log_sum = <double *>data(log_sum)
    k.p = <const double *>data(p)
    k.p_step = 0 if cnp.PyArray_SIZE(p) == 1 else 1
    k.bypass = k.y != k.x and k.y != k.dy and cnp.PyArray_NBYTES(y) >= BYPASS_ROWS
    share_rows(softmax_range, &k, k.rows, k.rows * k.n)


ctypedef struct sums_job:
    fd_row_sums rows
    int64_t parts
    double *sum


cdef void sums_range(const void *job_, int64_t first, int64_t end) noexcept nogil:
    cdef const sums_job *job = <const sums_job *>job_
    cdef const fd_row_sums *k = &job.rows
    cdef int64_t part
    for part in range(first, end):
        fd_row_sums_run(k, k.rows * part // job.parts, k.rows * (part + 1) // job.parts, job.sum + part * k.n)


def row_sums(cnp.ndarray total, cnp.ndarray y, cnp.ndarray x, mask):
    """y = dropout(x) unless None, total = the sum of its rows: of the same parts, whatever the number of threads."""
    cdef sums_job job
    cdef fd_row_sums *k = &job.rows
    cdef cnp.ndarray sums
    source(&k.mask, mask)
    k.p = mask._p
    k.dtype = dtype_of(x)
    check(cnp.PyArray_NDIM(x) == 2 and cnp.PyArray_SIZE(x))
    k.rows, k.n = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
    job.parts = max(1, min(MOST_SUMS, k.rows // 32, (1 << 16) // k.n))
    sums = new_array((job.parts, k.n), np.dtype(np.float64))
    check(cnp.PyArray_ISCARRAY_RO(x) and cnp.PyArray_SIZE(x) == k.rows * k.n
          and (y is None or (alike(y, x) and cnp.PyArray_ISCARRAY(y)))
          and one_a_row(total, k.n, 8 if k.dtype == FD_F64 else 4))
    check_stored(&k.mask, mask, <uint64_t>cnp.PyArray_SIZE(x) - 1)
    k.x, k.y = data(x), data(y)
    k.bypass = y is not None and k.y != k.x and cnp.PyArray_NBYTES(x) >= BYPASS_ROWS
    job.sum = <double *>cnp.PyArray_DATA(sums)
    share_rows(sums_range, &job, job.parts, k.rows * k.n)
    fd_row_sums_total(k, cnp.PyArray_DATA(total), job.sum, job.parts)


def max_norm(cnp.ndarray w, double limit):
    cdef fd_max_norm k
    check(cnp.PyArray_NDIM(w) == 3 and cnp.PyArray_ISCARRAY(w))
    k.dtype = dtype_of(w)
    k.w = data(w)
    k.outer, k.n, k.inner = cnp.PyArray_DIM(w, 0), cnp.PyArray_DIM(w, 1), cnp.PyArray_DIM(w, 2)
    k.limit = limit
    share_rows(max_norm_range, &k, fd_max_norm_units(&k), cnp.PyArray_SIZE(w))
