# The border of src/samples.h: part of _core.pyx, which includes it.

cdef extern from "samples.h" nogil:
    ctypedef struct fd_samples:
        fd_dtype dtype
        fd_source mask
        void *y
        const void *x
        const double *p
        int64_t samples, rows, n
        int64_t y_row, x_row, m_row
        int64_t x_sample, m_sample, p_step
    int64_t fd_samples_units(const fd_samples *samples)
    size_t fd_samples_scratch(const fd_samples *samples, int mean)
    void fd_samples_mean(const fd_samples *samples, int64_t first_unit, int64_t last_unit, void *scratch)
    void fd_samples_sum(const fd_samples *samples, int64_t first_unit, int64_t last_unit, void *scratch)


cdef int samples_plan(fd_samples *k, cnp.ndarray y, cnp.ndarray x, cnp.ndarray p, object mask) except -1:
    """``y`` (and each sample of ``x``) as rows of consecutive elements; the mask is [S, rows, n]."""
    cdef int lead = cnp.PyArray_NDIM(x) - 2
    strides = mask.strides_for(mask.shape)
    k.dtype = dtype_of(y)
    source(&k.mask, mask)
    k.y = cnp.PyArray_DATA(y)
    k.x = cnp.PyArray_DATA(x)
    k.p = <const double *>cnp.PyArray_DATA(p)
    k.p_step = cnp.PyArray_NDIM(p)
    k.samples = mask.shape[0]
    k.rows = cnp.PyArray_DIM(y, 0)
    k.n = cnp.PyArray_DIM(y, 1)
    k.y_row = cnp.PyArray_STRIDE(y, 0)
    k.x_row = cnp.PyArray_STRIDE(x, lead)
    k.x_sample = cnp.PyArray_STRIDE(x, 0) if lead else 0
    k.m_sample = <int64_t><uint64_t>strides[0]
    k.m_row = <int64_t><uint64_t>strides[1]
    return 0


def samples(cnp.ndarray y, cnp.ndarray x, cnp.ndarray p, mask, bint mean):
    """The mean, or the sum, over samples. y is [rows, n], x [rows, n] or [S, rows, n], the last axis consecutive."""
    cdef fd_samples k
    cdef int64_t part, parts, units
    cdef size_t room
    cdef char *scratch
    samples_plan(&k, y, x, p, mask)
    units = fd_samples_units(&k)
    parts = 1 if forked or cnp.PyArray_SIZE(y) * k.samples < SERIAL else min(threads, units)
    room = (fd_samples_scratch(&k, mean) + 63) // 64 * 64
    cdef cnp.ndarray memory = np.empty(parts * room, np.uint8)
    scratch = <char *>cnp.PyArray_DATA(memory)
    if parts == 1:
        with nogil:
            samples_run(&k, 0, units, scratch, mean)
        return
    for part in prange(parts, num_threads=<int>parts, schedule="static", nogil=True):
        samples_run(&k, units * part // parts, units * (part + 1) // parts, scratch + part * <int64_t>room, mean)


cdef void samples_run(const fd_samples *k, int64_t first, int64_t last, void *scratch, bint mean) noexcept nogil:
    if mean:
        fd_samples_mean(k, first, last, scratch)
    else:
        fd_samples_sum(k, first, last, scratch)
