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
    cdef int lead
    source(&k.mask, mask)  # in these lines Python code may run, after them none
    strides = mask.strides_for(mask.shape)
    k.m_sample = <int64_t><uint64_t>strides[0]
    k.m_row = <int64_t><uint64_t>strides[1]
    k.samples = mask.shape[0]
    k.dtype = dtype_of(y)
    lead = cnp.PyArray_NDIM(x) - 2
    check(cnp.PyArray_NDIM(y) == 2 and (lead == 0 or (lead == 1 and cnp.PyArray_DIM(x, 0) == k.samples))
          and cnp.PyArray_DIM(x, lead) == cnp.PyArray_DIM(y, 0) and cnp.PyArray_DIM(x, lead + 1) == cnp.PyArray_DIM(y, 1)
          and cnp.PyArray_TYPE(x) == cnp.PyArray_TYPE(y) and cnp.PyArray_ISBEHAVED_RO(x) and cnp.PyArray_ISBEHAVED(y)
          and (one_a_row(p, 1, 8) or one_a_row(p, k.samples, 8)))
    k.y = cnp.PyArray_DATA(y)
    k.x = cnp.PyArray_DATA(x)
    k.p = <const double *>cnp.PyArray_DATA(p)
    k.p_step = cnp.PyArray_NDIM(p)
    k.rows = cnp.PyArray_DIM(y, 0)
    k.n = cnp.PyArray_DIM(y, 1)
    k.y_row = cnp.PyArray_STRIDE(y, 0)
    k.x_row = cnp.PyArray_STRIDE(x, lead)
    if cnp.PyArray_SIZE(y):
        check_stored(&k.mask, mask, <uint64_t>(k.samples - 1) * <uint64_t>k.m_sample
                     + <uint64_t>(k.rows - 1) * <uint64_t>k.m_row + <uint64_t>(k.n - 1))
    k.x_sample = cnp.PyArray_STRIDE(x, 0) if lead else 0
    return 0


ctypedef struct samples_job:
    fd_samples samples
    char *scratch
    size_t room
    int64_t units, parts
    bint mean


cdef void samples_range(const void *job_, int64_t first, int64_t end) noexcept nogil:
    cdef const samples_job *job = <const samples_job *>job_
    cdef int64_t part
    for part in range(first, end):
        (fd_samples_mean if job.mean else fd_samples_sum)(
            &job.samples, job.units * part // job.parts, job.units * (part + 1) // job.parts, job.scratch + part * job.room
        )


def samples(cnp.ndarray y, cnp.ndarray x, cnp.ndarray p, mask, bint mean):
    """The mean, or the sum, over samples. y is [rows, n], x [rows, n] or [S, rows, n], the last axis consecutive."""
    cdef samples_job job
    samples_plan(&job.samples, y, x, p, mask)
    job.mean = mean
    job.units = fd_samples_units(&job.samples)
    job.parts = min(threads, job.units) if cnp.PyArray_SIZE(y) * job.samples.samples >= SERIAL else 1
    job.room = (fd_samples_scratch(&job.samples, mean) + 63) // 64 * 64
    scratch = new_array((job.parts * job.room,), np.dtype(np.uint8))
    job.scratch = <char *>cnp.PyArray_DATA(scratch)
    with nogil:
        fd_share(samples_range, &job, job.parts, <int>job.parts)
