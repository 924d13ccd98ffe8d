# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The border between Python and the C kernels: arrays in, jobs run, nothing decided.

The files in src/ know no Python; the modules of this package know no pointers.  Here checked arrays become the jobs of
fastdrop.h, which share their work among threads.  No maths.

Arrays are checked, and errors worded, by the modules that call this one. What memory safety hangs on is checked here once
more, when no Python code runs any more between the look at an array and its use: code of the caller's that ran meanwhile
may have reshaped it.  "Behaved" is NumPy's word for aligned, in native byte order and, where written, writeable.
"""

from cpython.buffer cimport PyBuffer_FillInfo
cimport numpy as cnp
import numpy as np

from .rng import QUIET, draw

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray prototype, cnp.NPY_ORDER order, cnp.PyArray_Descr *dtype, int subok)

Mask = None  # the class that `make` makes here, set by fastdrop.masks
MAX_NDIM = FD_MAX_NDIM
DTYPES = {fd_dtype_name(<fd_dtype>dtype).decode(): dtype for dtype in range(<int>FD_DTYPES)}
OPERATIONS = {fd_op_name(<fd_op>op).decode(): op for op in range(<int>FD_OPS)}
LOSSES = {fd_loss_table[op].name.decode(): op for op in range(<int>FD_LOSSES)}
LOSS_FACTS = [fd_loss_table[op] for op in range(<int>FD_LOSSES)]  # as dicts, for a test that they are Python's

cdef int threads = 1  # set by num_threads.set_num_threads


def set_threads(int n):
    """At most so many threads work on a call from now on."""
    global threads
    threads = n


def after_fork():
    """To be called in a forked child, where neither helper threads nor their locks are."""
    fd_threads_after_fork()
    fd_pool_after_fork()


def isa():
    """The instruction set in use."""
    return fd_isa().decode()


def isa_found():
    """The instruction sets that this machine has, best first."""
    cdef const char *const *names = fd_isa_found()
    cdef int i = 0
    found = []
    while names[i] is not NULL:
        found.append(names[i].decode())
        i += 1
    return found


def use_isa(name):
    """Run the kernels of that instruction set from now on."""
    cdef bytes text = name.encode()
    if fd_use_isa(text):
        raise ValueError(f"FASTDROP_ISA must be one of {isa_found()} on this machine, got {name!r}")


cdef class Fields:
    """What a `fastdrop.Mask` is made of, where the kernels reach it without a dictionary; read-only from Python."""

    cdef readonly object _seed, _stream, _shape, _p, _offset, _strides, _stored

    def __getbuffer__(self, Py_buffer *buffer, int flags):  # np.asarray(mask) asks here first, and goes on to __array__
        raise TypeError("a mask exports no buffer: mask.bits() is an array of its packed bits, mask.keep() of bools")


def make(cls, seed, stream, shape, p, offset=0, strides=None, stored=None):
    """A mask of class `cls`, without a check of its fields."""
    cdef Fields self = Fields.__new__(cls)
    self._seed = seed
    self._stream = stream
    self._shape = shape
    self._p = p
    self._offset = offset
    self._strides = strides
    self._stored = stored
    return self


# -- memory of fresh outputs -------------------------------------------------------------------------------------------

cdef class Buffer:
    """Owns a buffer of the pool; the array over it holds this, so that it goes back when nobody holds the array."""

    cdef void *data
    cdef size_t bytes

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, <Py_ssize_t>self.bytes, 0, flags)

    def __dealloc__(self):
        if self.data is not NULL:
            fd_pool_give(self.data, self.bytes)


cdef Buffer buffer_of(size_t bytes):
    """A buffer of so many bytes, or None where they are too few to need one, or not to be had."""
    cdef Buffer buffer
    if bytes < FD_PAGE:
        return None
    buffer = Buffer.__new__(Buffer)
    buffer.data = fd_pool_take(bytes)
    if buffer.data is NULL:
        return None
    buffer.bytes = bytes
    return buffer


def allocate(make, *args):
    """make(*args), which allocates. Where memory has run out, what is kept for later goes back, and it is called again."""
    try:
        return make(*args)
    except MemoryError:
        if not fd_pool_release():
            raise
    return make(*args)


cdef cnp.ndarray empty_like(cnp.ndarray x):
    cdef Buffer buffer = None
    if cnp.PyArray_IS_C_CONTIGUOUS(x) or cnp.PyArray_IS_F_CONTIGUOUS(x):
        buffer = buffer_of(<size_t>cnp.PyArray_NBYTES(x))
    if buffer is None:
        try:
            return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
        except MemoryError:
            return allocate(np.empty_like, x, None, "K", False)
    return np.ndarray((<object>x).shape, (<object>x).dtype, buffer, 0, (<object>x).strides)


def new_array(tuple shape, dtype):
    """An uninitialised array in C order; from the pool where it is large. Its bytes must fit an int64."""
    cdef size_t bytes = dtype.itemsize
    for n in shape:
        bytes *= <size_t>n
    buffer = buffer_of(bytes)
    return allocate(np.empty, shape, dtype) if buffer is None else np.ndarray(shape, dtype, buffer)


def new_like(cnp.ndarray x):
    """An uninitialised array in x's layout and native byte order; from the pool where it is large and close-packed."""
    if cnp.PyArray_ISNOTSWAPPED(x):
        return empty_like(x)
    return allocate(np.empty_like, x, (<object>x).dtype.newbyteorder("="))


def set_buffer_limit(size_t bytes):
    """Keep at most so many bytes of freed outputs for the next ones."""
    fd_pool_limit(bytes)


def kept_bytes():
    """Bytes of freed outputs that are kept for the next ones."""
    return fd_pool_kept()


def release_buffers():
    """Give the memory of freed outputs back to the system."""
    fd_pool_release()


# -- outputs ------------------------------------------------------------------------------------------------------------

cdef inline void bounds(cnp.ndarray x, char **low, char **high) noexcept:
    """The memory that x's elements lie in: [low, high)."""
    cdef Py_ssize_t step
    cdef int i
    low[0] = high[0] = <char *>cnp.PyArray_DATA(x)
    high[0] += cnp.PyArray_ITEMSIZE(x)
    for i in range(cnp.PyArray_NDIM(x)):
        step = (cnp.PyArray_DIM(x, i) - 1) * cnp.PyArray_STRIDE(x, i)
        if step > 0:
            high[0] += step
        else:
            low[0] += step


def apart(cnp.ndarray out not None, *others):
    """Is `out` writeable and close-packed, and far from all others? Else `arrays` looks closer; None among them is nothing."""
    cdef char *low
    cdef char *high
    cdef char *from_
    cdef char *to
    if not cnp.PyArray_ISWRITEABLE(out) or not (cnp.PyArray_IS_C_CONTIGUOUS(out) or cnp.PyArray_IS_F_CONTIGUOUS(out)):
        return False
    bounds(out, &low, &high)
    for other in others:
        if other is not None:
            bounds(other, &from_, &to)
            if from_ < high and low < to:
                return False
    return True


# -- what jobs are made of ----------------------------------------------------------------------------------------------

cdef int check(bint unchanged) except -1:
    if not unchanged:
        raise ValueError("an array changed its shape, dtype or layout during the call")
    return 0


cdef inline bint alike(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Can x be read, element by element, where y is written?"""
    return cnp.PyArray_SAMESHAPE(x, y) and cnp.PyArray_TYPE(x) == cnp.PyArray_TYPE(y) and cnp.PyArray_ISBEHAVED_RO(x)


cdef bint consecutive(cnp.ndarray x) noexcept:
    """Do the elements along the last axis follow one another?"""
    cdef int last = cnp.PyArray_NDIM(x) - 1
    return cnp.PyArray_DIM(x, last) <= 1 or cnp.PyArray_STRIDE(x, last) == cnp.PyArray_ITEMSIZE(x)


cdef bint rows_alike(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Is x None, or of y's two axes and dtype, the last one consecutive?"""
    return x is None or (alike(x, y) and cnp.PyArray_NDIM(x) == 2 and consecutive(x))


cdef bint operand_of(cnp.ndarray x, cnp.ndarray y, int64_t item) noexcept:
    """Is x None, or of y's shape, with items of that size, the last axis consecutive?"""
    return x is None or (cnp.PyArray_SAMESHAPE(x, y) and cnp.PyArray_ISBEHAVED_RO(x) and cnp.PyArray_ITEMSIZE(x) == item
                         and consecutive(x))


cdef bint one_a_row(cnp.ndarray v, int64_t rows, int64_t item) noexcept:
    """Is v None, or one consecutive number a row?"""
    return v is None or (cnp.PyArray_ISCARRAY_RO(v) and cnp.PyArray_SIZE(v) == rows and cnp.PyArray_ITEMSIZE(v) == item)


cdef char *data(cnp.ndarray a) noexcept:
    return NULL if a is None else <char *>cnp.PyArray_DATA(a)


cdef int64_t row_step(cnp.ndarray a) noexcept:
    return 0 if a is None else cnp.PyArray_STRIDE(a, 0)


cdef fd_dtype dtype_of(cnp.ndarray x) except *:
    cdef int number = cnp.PyArray_TYPE(x)
    if number == cnp.NPY_FLOAT:
        return FD_F32
    if number == cnp.NPY_DOUBLE:
        return FD_F64
    if number == NPY_HALF:
        return FD_F16
    other = DTYPES.get((<object>x).dtype.name)
    if other is not None:
        return <fd_dtype><int>other
    raise TypeError(f"no kernel for dtype {(<object>x).dtype}")


cdef int source(fd_source *out, Fields mask) except -1:
    cdef cnp.ndarray stored
    if mask._stored is None:
        out.seed = mask._seed
        out.stream = mask._stream
        out.stored = NULL
    else:
        stored = mask._stored
        out.seed = out.stream = 0
        out.stored = <const uint8_t *>cnp.PyArray_DATA(stored)
    out.offset = mask._offset
    return 0


cdef int check_stored(const fd_source *source, Fields mask, uint64_t last) except -1:
    """Element number ``last``, and so all before it, must be among the bits that are stored, if any are."""
    cdef cnp.ndarray stored = mask._stored
    if stored is not None and not (
        cnp.PyArray_ISCARRAY_RO(stored)
        and cnp.PyArray_DATA(stored) == source.stored
        and (source.offset + last) // 8 < <uint64_t>cnp.PyArray_NBYTES(stored)
    ):
        raise ValueError(f"a mask of shape {mask._shape} has {(<object>stored).nbytes} bytes of bits, which do not reach it")
    return 0


# -- elementwise --------------------------------------------------------------------------------------------------------

cdef object fill_mask(fd_elementwise *job, double *p, tuple shape, Fields mask):
    """The lengths of ``job``'s axes, its mask and p; ``p`` is where a scalar p is kept. What an array p is read from is returned.

    The arrays come next: here Python code may run, and none after it.
    """
    cdef cnp.ndarray ps = None
    cdef fd_axis *axis
    cdef int a, ndim = len(shape)
    cdef uint64_t step = 1, last = 0
    cdef bint whole = mask._strides is None and shape == mask._shape
    cdef tuple strides = None
    check(ndim <= FD_MAX_NDIM)
    source(&job.mask, mask)
    if not whole:
        strides = tuple([int(s) for s in mask.strides_for(shape)])
        check(len(strides) == ndim)
    if type(mask._p) is float:
        p[0] = mask._p
        job.p = p
    else:
        ps = np.broadcast_to(np.asarray(mask.broadcast_p(), np.float64), shape)
        job.p = <const double *>cnp.PyArray_DATA(ps)
    job.ndim = ndim
    for a in range(ndim - 1, -1, -1):
        axis = &job.axis[a]
        axis.n = shape[a]
        axis.p = 0 if ps is None else cnp.PyArray_STRIDE(ps, a) // 8
        axis.mask = <int64_t>step if whole else <int64_t><uint64_t>strides[a]
        step *= <uint64_t>axis.n
        last += <uint64_t>(axis.n - 1) * <uint64_t>axis.mask
    if step:
        check_stored(&job.mask, mask, last)
    return ps


cdef object fill(fd_elementwise *job, double *p, fd_op op, fd_dtype dtype, cnp.ndarray y, tuple inputs, Fields mask):
    """``job`` from arrays; what an array p is read from is returned."""
    cdef cnp.ndarray x
    cdef fd_axis *axis
    cdef int a, i
    ps = fill_mask(job, p, (<object>y).shape, mask)
    check(cnp.PyArray_NDIM(y) == job.ndim and cnp.PyArray_ISBEHAVED(y))
    job.op = op
    job.dtype = dtype
    job.y = cnp.PyArray_DATA(y)
    for a in range(job.ndim):
        axis = &job.axis[a]
        check(axis.n == cnp.PyArray_DIM(y, a))
        axis.y = cnp.PyArray_STRIDE(y, a)
    for i in range(FD_INPUTS):
        job.in_[i] = NULL
    for i, x in enumerate(inputs):
        check(alike(x, y))
        job.in_[i] = cnp.PyArray_DATA(x)
        for a in range(job.ndim):
            job.axis[a].in_[i] = cnp.PyArray_STRIDE(x, a)
    return ps


cdef int run(fd_op op, fd_dtype dtype, cnp.ndarray y, tuple inputs, Fields mask) except -1:
    cdef fd_elementwise job
    cdef double p
    ps = fill(&job, &p, op, dtype, y, inputs, mask)  # lives until the job is done
    with nogil:
        fd_run_elementwise(&job, threads)
    return 0


def apply(cnp.ndarray y, cnp.ndarray x, Fields mask):
    """y = dropout(x) by ``mask``, which broadcasts to them: behaved arrays of one shape and float dtype, any strides."""
    run(FD_APPLY, dtype_of(y), y, (x,), mask)


def apply_at(size_t y, tuple y_steps, size_t x, tuple x_steps, fd_dtype dtype, tuple shape, Fields mask):
    """`apply` on memory at the addresses ``y`` and ``x``, steps in elements, for owners whose arrays are no ndarrays.

    ``dtype`` is one of the numbers in `DTYPES`.

    Of what is given nothing is checked but the number of axes: the caller holds the memory, and it is as `apply` asks.
    """
    cdef fd_elementwise job
    cdef double p
    cdef int a
    cdef int64_t item
    ps = fill_mask(&job, &p, shape, mask)
    check(len(y_steps) == job.ndim and len(x_steps) == job.ndim and 0 <= <int>dtype < <int>FD_DTYPES)
    job.op = FD_APPLY
    job.dtype = dtype
    item = fd_item_size(dtype)
    job.y = <void *>y
    job.in_[0] = <const void *>x
    job.in_[1] = job.in_[2] = NULL
    for a in range(job.ndim):
        job.axis[a].y = item * <int64_t>y_steps[a]
        job.axis[a].in_[0] = item * <int64_t>x_steps[a]
    with nogil:
        fd_run_elementwise(&job, threads)


def keep(cnp.ndarray out, Fields mask):
    """The decisions of ``mask``, which broadcasts to ``out``: behaved, bytes or bools, any strides."""
    check(cnp.PyArray_ITEMSIZE(out) == 1)
    run(FD_KEEP, FD_F32, out, (), mask)


def elementwise(str op, cnp.ndarray y, tuple inputs, Fields mask):
    """y = the operation of ops.def with that name; y may be one of the inputs. Arrays as of `apply`."""
    cdef fd_op number = <fd_op><int>OPERATIONS[op]
    if len(inputs) != fd_op_inputs(number):
        raise TypeError(f"{op} has {fd_op_inputs(number)} inputs, got {len(inputs)}")
    run(number, dtype_of(y), y, inputs, mask)


def keep_bits(cnp.ndarray out, Fields mask, int64_t n):
    """Packed bits of a mask whose elements follow one another and that has one p; ``out``: contiguous bytes."""
    cdef fd_source bits
    cdef double p = mask._p
    source(&bits, mask)
    check(cnp.PyArray_ISCARRAY(out) and 0 < n <= 8 * cnp.PyArray_NBYTES(out))
    check_stored(&bits, mask, <uint64_t>n - 1)
    with nogil:
        fd_keep_bits(<uint8_t *>cnp.PyArray_DATA(out), bits, p, n, threads)


def describe_plan(cnp.ndarray y, cnp.ndarray x, mask):
    """How `apply` would go about these arrays; for tests that a fast way has not been lost."""
    cdef fd_elementwise job
    cdef fd_plan plan
    cdef fd_axis *last
    cdef double p
    cdef int a
    ps = fill(&job, &p, FD_APPLY, dtype_of(y), y, (x,), mask)
    fd_plan_elementwise(&plan, &job)
    last = &plan.axis[plan.ndim - 1]
    return {
        "isa": isa(),
        "axes": [plan.axis[a].n for a in range(plan.ndim)],
        "bits": "across" if plan.crossed else {0: "shared", 1: "along"}.get(last.mask, "one by one"),
        "runs and columns": (plan.run, plan.columns) if plan.crossed else None,
        "runs joined": bool(plan.joined),
        "x packed": last.in_[0] != cnp.PyArray_ITEMSIZE(x),
        "y packed": last.y != cnp.PyArray_ITEMSIZE(y),
        "units": plan.units,
        "nontemporal": bool(plan.nontemporal),
    }


cdef bint disjoint(cnp.ndarray a, cnp.ndarray b):
    """Do two contiguous arrays of the same size in bytes not share any?"""
    cdef char *p = <char *>cnp.PyArray_DATA(a)
    cdef char *q = <char *>cnp.PyArray_DATA(b)
    cdef int64_t bytes = cnp.PyArray_NBYTES(a)
    return p + bytes <= q or q + bytes <= p


cdef bint is_plain(cnp.ndarray y, cnp.ndarray x, int number):
    """Is writing y from x, of that dtype, one run over consecutive numbers?"""
    return (
        cnp.PyArray_TYPE(x) == cnp.PyArray_TYPE(y) == number
        and cnp.PyArray_ISCARRAY_RO(x)
        and cnp.PyArray_ISCARRAY(y)
        and cnp.PyArray_SAMESHAPE(y, x)
        and (y is x or disjoint(y, x))
    )


def fast_path(x, p, rng, out):
    """`fastdrop.dropout` where nothing is out of the ordinary: (y, mask), or None and nothing done where anything is.

    Only speed is gained here; what is refused takes the ordinary way, errors included. Trusts nothing.
    """
    cdef cnp.ndarray source, target
    cdef fd_elementwise job
    cdef fd_axis *axis = &job.axis[0]
    cdef double drop
    cdef int number
    cdef Fields mask
    if type(x) is not np.ndarray or type(p) is not float or type(rng) not in QUIET:
        return None
    source = x
    drop = p
    number = cnp.PyArray_TYPE(source)
    if not (0.0 < drop <= 1.0 and cnp.PyArray_SIZE(source)) or number not in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE, NPY_HALF):
        return None
    if out is None:
        target = empty_like(source)
    elif type(out) is np.ndarray:
        target = out
    else:
        return None
    if not is_plain(target, source, number):
        return None
    seed, stream = draw(rng)  # last, so that a call that raises takes no mask
    job.mask.seed = seed
    job.mask.stream = stream
    check(is_plain(target, source, number))  # another thread may have changed the arrays meanwhile
    job.op = FD_APPLY
    job.dtype = dtype_of(source)
    job.mask.offset = 0
    job.mask.stored = NULL
    job.y = cnp.PyArray_DATA(target)
    job.in_[0] = cnp.PyArray_DATA(source)
    job.in_[1] = job.in_[2] = NULL
    job.p = &drop
    job.ndim = 1
    axis.n = cnp.PyArray_SIZE(source)
    axis.y = axis.in_[0] = cnp.PyArray_ITEMSIZE(source)
    axis.mask = 1
    axis.p = 0
    mask = make(Mask, seed, stream, (<object>source).shape, p)
    if axis.n < FD_SERIAL:  # to give up the GIL and take it again costs a small array more than it is worth
        fd_run_elementwise(&job, 1)
    else:
        with nogil:
            fd_run_elementwise(&job, threads)
    return target, mask


# -- rows ---------------------------------------------------------------------------------------------------------------

def row_losses(op, cnp.ndarray a, cnp.ndarray b, cnp.ndarray da, cnp.ndarray db, cnp.ndarray label, cnp.ndarray target,
               cnp.ndarray skip, cnp.ndarray loss, cnp.ndarray kl, double temperature, double weight, double alpha,
               double smoothing):
    """A loss of each row and its gradients.

    Of [rows, classes], behaved, the last axis consecutive, of one dtype: a, da and, unless None, b, db, target. Contiguous, one a
    row: label (int64, each a class), skip (bytes), loss, kl (doubles).
    """
    cdef fd_losses k
    k.dtype = dtype_of(a)
    k.op = <fd_loss><int>LOSSES[op]
    check((b is None) == (db is None) == (fd_loss_table[<int>k.op].sides == 1))
    check(rows_alike(a, a) and cnp.PyArray_SIZE(a) and rows_alike(b, a) and rows_alike(da, a) and rows_alike(db, a) and rows_alike(target, a)
          and cnp.PyArray_ISWRITEABLE(da) and (db is None or cnp.PyArray_ISWRITEABLE(db)))
    k.rows, k.n = cnp.PyArray_DIM(a, 0), cnp.PyArray_DIM(a, 1)
    check(one_a_row(label, k.rows, 8) and one_a_row(skip, k.rows, 1) and one_a_row(loss, k.rows, 8)
          and one_a_row(kl, k.rows, 8))
    k.a, k.b, k.da, k.db, k.target = data(a), data(b), data(da), data(db), data(target)
    k.a_step, k.b_step, k.da_step, k.db_step, k.target_step = row_step(a), row_step(b), row_step(da), row_step(db), row_step(target)
    k.label = <const int64_t *>data(label)
    k.skip = <const uint8_t *>data(skip)
    k.inv_temperature = 1 / temperature
    k.weight, k.alpha, k.smoothing = weight, alpha, smoothing
    k.loss = <double *>data(loss)
    k.kl = <double *>data(kl)
    k.nontemporal = k.a != k.da and k.b != k.db and 2 * k.rows * k.n * cnp.PyArray_ITEMSIZE(a) >= FD_NONTEMPORAL
    with nogil:
        fd_run_losses(&k, threads)


def softmax_dropout(cnp.ndarray y, cnp.ndarray logsumexp, cnp.ndarray dy, cnp.ndarray x, cnp.ndarray bias, cnp.ndarray allow,
                    mask, cnp.ndarray p):
    """Forward where dy is None, else backward with y for dx.

    Contiguous and of one shape and dtype: y, dy, x. logsumexp: contiguous doubles, one a row; p: likewise, or one for all. bias
    (behaved; float, or double for doubles) and allow (bools) have x's dimensions, by broadcasting, the last axis consecutive.
    """
    cdef fd_softmax k
    cdef int axis, last
    source(&k.mask, mask)
    k.dtype = dtype_of(x)
    last = cnp.PyArray_NDIM(x) - 1
    check(last >= 0 and cnp.PyArray_SIZE(x) and cnp.PyArray_ISCARRAY_RO(x) and cnp.PyArray_ISCARRAY(y) and alike(y, x)
          and (dy is None or (alike(dy, x) and cnp.PyArray_ISCARRAY_RO(dy)))
          and operand_of(bias, x, 8 if k.dtype == FD_F64 else 4) and operand_of(allow, x, 1)
          and cnp.PyArray_SIZE(logsumexp) * cnp.PyArray_DIM(x, last) == cnp.PyArray_SIZE(x)
          and one_a_row(logsumexp, cnp.PyArray_SIZE(logsumexp), 8)
          and (one_a_row(p, 1, 8) or one_a_row(p, cnp.PyArray_SIZE(logsumexp), 8)))
    k.ndim = last
    k.n = cnp.PyArray_DIM(x, last)
    k.rows = cnp.PyArray_SIZE(logsumexp)
    for axis in range(last):
        k.shape[axis] = cnp.PyArray_DIM(x, axis)
        k.bias_step[axis] = 0 if bias is None else cnp.PyArray_STRIDE(bias, axis)
        k.allow_step[axis] = 0 if allow is None else cnp.PyArray_STRIDE(allow, axis)
    check_stored(&k.mask, mask, <uint64_t>cnp.PyArray_SIZE(x) - 1)
    k.x, k.y, k.dy, k.bias, k.allow = data(x), data(y), data(dy), data(bias), data(allow)
    k.logsumexp = <double *>data(logsumexp)
    k.p = <const double *>data(p)
    k.p_step = 0 if cnp.PyArray_SIZE(p) == 1 else 1
    k.nontemporal = k.y != k.x and k.y != k.dy and cnp.PyArray_NBYTES(y) >= FD_NONTEMPORAL
    with nogil:
        fd_run_softmax(&k, threads)


def row_sums(cnp.ndarray total, cnp.ndarray y, cnp.ndarray x, mask):
    """y = dropout(x) unless None, total = the sum of its rows: the same bits on any number of threads.

    Contiguous, of one dtype: x [rows, n] and y; total: n floats, or doubles for doubles. The mask is of x's shape, with one p.
    """
    cdef fd_row_sums k
    cdef cnp.ndarray sums
    source(&k.mask, mask)
    k.p = mask._p
    k.dtype = dtype_of(x)
    check(cnp.PyArray_NDIM(x) == 2 and cnp.PyArray_SIZE(x))
    k.rows, k.n = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
    sums = new_array((fd_row_sums_parts(k.rows, k.n), k.n), np.dtype(np.float64))
    check(cnp.PyArray_ISCARRAY_RO(x) and cnp.PyArray_SIZE(x) == k.rows * k.n
          and (y is None or (alike(y, x) and cnp.PyArray_ISCARRAY(y)))
          and one_a_row(total, k.n, 8 if k.dtype == FD_F64 else 4))
    check_stored(&k.mask, mask, <uint64_t>cnp.PyArray_SIZE(x) - 1)
    k.x, k.y, k.total = data(x), data(y), data(total)
    k.nontemporal = y is not None and k.y != k.x and cnp.PyArray_NBYTES(x) >= FD_NONTEMPORAL
    k.scratch = <double *>cnp.PyArray_DATA(sums)
    with nogil:
        fd_run_row_sums(&k, threads)


def max_norm(cnp.ndarray w, double limit):
    """Scale the vectors along the middle one of w's three axes, in place; w is contiguous."""
    cdef fd_max_norm k
    check(cnp.PyArray_NDIM(w) == 3 and cnp.PyArray_ISCARRAY(w))
    k.dtype = dtype_of(w)
    k.w = data(w)
    k.outer, k.n, k.inner = cnp.PyArray_DIM(w, 0), cnp.PyArray_DIM(w, 1), cnp.PyArray_DIM(w, 2)
    k.limit = limit
    with nogil:
        fd_run_max_norm(&k, threads)


# -- samples ------------------------------------------------------------------------------------------------------------

def samples(cnp.ndarray y, cnp.ndarray x, cnp.ndarray p, mask, bint mean):
    """The mean, or the sum, over samples.

    y is [rows, n], x [rows, n] or [S, rows, n], the mask [S, rows, n]: behaved, of one dtype, the last axis consecutive. p:
    contiguous doubles, one or one a sample.
    """
    cdef fd_samples k
    cdef int lead
    source(&k.mask, mask)  # in these lines Python code may run, after them none
    strides = mask.strides_for(mask.shape)
    k.m_sample = <int64_t><uint64_t>strides[0]
    k.m_row = <int64_t><uint64_t>strides[1]
    k.samples = mask.shape[0]
    k.rows, k.n = mask.shape[1], mask.shape[2]
    k.mean = mean
    k.dtype = dtype_of(y)
    k.p_step = cnp.PyArray_NDIM(p) > 0
    k.parts = fd_samples_parts(&k, threads)
    scratch = new_array((k.parts * <int64_t>fd_samples_scratch(&k),), np.dtype(np.uint8))
    lead = cnp.PyArray_NDIM(x) - 2
    check(cnp.PyArray_NDIM(y) == 2 and (lead == 0 or (lead == 1 and cnp.PyArray_DIM(x, 0) == k.samples))
          and cnp.PyArray_DIM(y, 0) == k.rows and cnp.PyArray_DIM(y, 1) == k.n
          and cnp.PyArray_DIM(x, lead) == k.rows and cnp.PyArray_DIM(x, lead + 1) == k.n
          and cnp.PyArray_TYPE(x) == cnp.PyArray_TYPE(y) and cnp.PyArray_ISBEHAVED_RO(x) and cnp.PyArray_ISBEHAVED(y)
          and consecutive(x) and consecutive(y)
          and one_a_row(p, k.samples if k.p_step else 1, 8))
    k.y = cnp.PyArray_DATA(y)
    k.x = cnp.PyArray_DATA(x)
    k.p = <const double *>cnp.PyArray_DATA(p)
    k.y_row = cnp.PyArray_STRIDE(y, 0)
    k.x_row = cnp.PyArray_STRIDE(x, lead)
    k.x_sample = cnp.PyArray_STRIDE(x, 0) if lead else 0
    if cnp.PyArray_SIZE(y):
        check_stored(&k.mask, mask, <uint64_t>(k.samples - 1) * <uint64_t>k.m_sample
                     + <uint64_t>(k.rows - 1) * <uint64_t>k.m_row + <uint64_t>(k.n - 1))
    k.scratch = <void *>cnp.PyArray_DATA(scratch)
    with nogil:
        fd_run_samples(&k, threads)
