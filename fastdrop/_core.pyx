# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The border between Python and the C kernels: arrays in, work shared among threads, nothing decided.

The files in src/ know no Python; the modules of this package know no pointers.  Here a checked array becomes an `fd_walk`,
and its units are shared among threads.  No maths.

Arrays are checked by the modules that call this one. What memory safety hangs on is checked here once more, when no Python
code runs any more between the look at an array and its use: code of the caller's that ran meanwhile may have reshaped it.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t, uint64_t, uint8_t
cimport numpy as cnp
import numpy as np

from .rng import QUIET, as_rng

cnp.import_array()

Mask = None  # the class that `make` makes here, set by fastdrop.masks

cdef extern from "fastdrop.h" nogil:
    enum: FD_MAX_NDIM, FD_INPUTS
    cdef enum fd_dtype:
        FD_F32, FD_F64, FD_F16, FD_BF16
    cdef enum fd_op:
        FD_APPLY, FD_OPS, FD_KEEP
    ctypedef struct fd_source:
        uint64_t seed, stream, offset
        const uint8_t *stored
    ctypedef struct fd_walk:
        fd_op op
        fd_dtype dtype
        int ndim
        fd_source mask
        void *y
        const void **in_ "in"
        const double *p
        int64_t *shape
        int64_t *y_step
        int64_t (*in_step)[64]
        int64_t *m_step
        int64_t *p_step
        int64_t units, columns, run
        int crossed, joined, bypass
    const char *fd_op_name(fd_op op)
    int fd_op_inputs(fd_op op)
    void fd_plan(fd_walk *walk)
    void fd_run(const fd_walk *walk, int64_t first_unit, int64_t last_unit)
    void fd_keep_bits(uint8_t *out, fd_source mask, double p, int64_t n)
    const char *fd_isa()
    const char *const *fd_isa_found()
    int fd_use_isa(const char *name)

cdef extern from "threads.h" nogil:
    ctypedef void (*fd_range)(const void *job, int64_t first, int64_t end) noexcept nogil
    void fd_share(fd_range run, const void *job, int64_t units, int threads)
    void fd_threads_after_fork()

cdef extern from "blocks.h" nogil:
    enum: FD_BLOCK_UNIT
    void *fd_block_take(size_t bytes)
    void fd_block_give(void *block, size_t bytes)
    void fd_blocks_limit(size_t bytes)
    size_t fd_blocks_kept()
    size_t fd_blocks_release()
    void fd_blocks_after_fork()

cdef extern from "numpy/arrayobject.h":
    enum: NPY_HALF
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray prototype, cnp.NPY_ORDER order, cnp.PyArray_Descr *dtype, int subok)

MAX_NDIM = FD_MAX_NDIM
OPERATIONS = {fd_op_name(<fd_op>op).decode(): op for op in range(<int>FD_OPS)}

cdef enum:
    SERIAL = 1 << 18  # elements under which waking threads costs more than it gains

cdef int threads = 1          # set by config.set_num_threads


def set_threads(int n):
    global threads
    threads = n


def after_fork():
    fd_threads_after_fork()
    fd_blocks_after_fork()


def isa():
    return fd_isa().decode()


def isa_found():
    cdef const char *const *names = fd_isa_found()
    cdef int i = 0
    found = []
    while names[i] is not NULL:
        found.append(names[i].decode())
        i += 1
    return found


def use_isa(name):
    cdef bytes text = name.encode()
    if fd_use_isa(text):
        raise ValueError(f"FASTDROP_ISA must be one of {isa_found()} on this machine, got {name!r}")


cdef class Fields:
    """What a `fastdrop.Mask` is made of, where the kernels reach it without a dictionary; read-only from Python."""

    cdef readonly object _seed, _stream, _shape, _p, _offset, _strides, _stored

    def __getbuffer__(self, Py_buffer *buffer, int flags):  # np.asarray(mask) asks here first, and goes on to __array__
        raise TypeError("a mask exports no buffer: mask.bits() is an array of its packed bits, mask.keep() of bools")


def make(cls, seed, stream, shape, p, offset=0, strides=None, stored=None):
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

cdef class Block:
    """Owns a block of `blocks.c`; the array over it holds this, so that it goes back when nobody holds the array."""

    cdef void *data
    cdef size_t bytes

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, <Py_ssize_t>self.bytes, 0, flags)

    def __dealloc__(self):
        if self.data is not NULL:
            fd_block_give(self.data, self.bytes)


cdef Block block_of(size_t bytes):
    """A block of so many bytes, or None where they are too few to need one, or not to be had."""
    cdef Block block
    if bytes < FD_BLOCK_UNIT:
        return None
    block = Block.__new__(Block)
    block.data = fd_block_take(bytes)
    if block.data is NULL:
        return None
    block.bytes = bytes
    return block


def with_room(make, *args):
    """make(*args), which allocates. Where memory has run out, what is kept for later goes back, and it is called again."""
    try:
        return make(*args)
    except MemoryError:
        if not fd_blocks_release():
            raise
    return make(*args)


cdef cnp.ndarray empty_like(cnp.ndarray x):
    """An uninitialised array in x's layout and dtype; from a block where it is large and x's elements are close-packed."""
    cdef Block block = None
    if cnp.PyArray_IS_C_CONTIGUOUS(x) or cnp.PyArray_IS_F_CONTIGUOUS(x):
        block = block_of(<size_t>cnp.PyArray_NBYTES(x))
    if block is None:
        try:
            return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
        except MemoryError:
            return with_room(np.empty_like, x, None, "K", False)
    return np.ndarray((<object>x).shape, (<object>x).dtype, block, 0, (<object>x).strides)


def new_array(tuple shape, dtype):
    """An uninitialised array in C order; from a block where it is large. Its bytes must fit an int64."""
    cdef size_t bytes = dtype.itemsize
    for n in shape:
        bytes *= <size_t>n
    block = block_of(bytes)
    return with_room(np.empty, shape, dtype) if block is None else np.ndarray(shape, dtype, block)


def new_like(cnp.ndarray x):
    return empty_like(x)


def set_buffer_limit(size_t bytes):
    fd_blocks_limit(bytes)


def kept_bytes():
    return fd_blocks_kept()


def release_buffers():
    fd_blocks_release()


# -- dropout ------------------------------------------------------------------------------------------------------------

cdef void walk_range(const void *walk, int64_t first, int64_t end) noexcept nogil:
    fd_run(<const fd_walk *>walk, first, end)


cdef void run(fd_walk *walk, int64_t size) noexcept nogil:
    """Share the units of a walk among threads. How they are cut changes no bit of the result."""
    fd_plan(walk)
    fd_share(walk_range, walk, walk.units, threads if size >= SERIAL else 1)


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


cdef int sweep(fd_op op, fd_dtype dtype, cnp.ndarray y, tuple inputs, Fields mask) except -1:
    cdef fd_walk walk
    cdef double p
    ps = fill(&walk, &p, op, dtype, y, inputs, mask)  # lives until the walk is done
    with nogil:
        run(&walk, cnp.PyArray_SIZE(y))
    return 0


cdef int check(bint unchanged) except -1:
    if not unchanged:
        raise ValueError("an array changed its shape, dtype or layout during the call")
    return 0


cdef inline bint alike(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Can x be read, element by element, where y is written?"""
    return cnp.PyArray_SAMESHAPE(x, y) and cnp.PyArray_TYPE(x) == cnp.PyArray_TYPE(y) and cnp.PyArray_ISBEHAVED_RO(x)


def way(cnp.ndarray y, cnp.ndarray x, mask):
    """How `apply` would go about these arrays; for tests that a fast way has not been lost."""
    cdef fd_walk walk
    cdef double p
    cdef int last, a
    ps = fill(&walk, &p, FD_APPLY, dtype_of(y), y, (x,), mask)
    fd_plan(&walk)
    last = walk.ndim - 1
    return {
        "isa": isa(),
        "axes": [walk.shape[a] for a in range(walk.ndim)],
        "bits": "across" if walk.crossed else {0: "shared", 1: "along"}.get(walk.m_step[last], "one by one"),
        "runs and columns": (walk.run, walk.columns) if walk.crossed else None,
        "runs joined": bool(walk.joined),
        "x packed": walk.in_step[0][last] != cnp.PyArray_ITEMSIZE(x),
        "y packed": walk.y_step[last] != cnp.PyArray_ITEMSIZE(y),
        "units": walk.units,
        "past the cache": bool(walk.bypass),
    }


cdef object fill(fd_walk *walk, double *p, fd_op op, fd_dtype dtype, cnp.ndarray y, tuple inputs, Fields mask):
    """The upper part of ``walk``; ``p`` is where a scalar p is kept. What an array p is read from is returned."""
    cdef cnp.ndarray ps = None, x
    cdef int a, i, ndim
    cdef uint64_t step = 1, last = 0
    cdef bint whole
    cdef tuple strides = None
    source(&walk.mask, mask)  # in the first lines Python code may run, after them none
    shape = (<object>y).shape
    whole = mask._strides is None and shape == mask._shape
    if not whole:
        strides = tuple([int(s) for s in mask.strides_for(shape)])
    if type(mask._p) is float:
        p[0] = mask._p
        walk.p = p
    else:
        ps = np.broadcast_to(np.asarray(mask.wide_p(), np.float64), shape)
    if not whole or ps is not None:
        check((<object>y).shape == shape and (whole or len(strides) == len(shape)))
    check(cnp.PyArray_ISBEHAVED(y))
    ndim = cnp.PyArray_NDIM(y)
    walk.op = op
    walk.dtype = dtype
    walk.ndim = ndim
    walk.y = cnp.PyArray_DATA(y)
    for i in range(FD_INPUTS):
        walk.in_[i] = NULL
    for i, x in enumerate(inputs):
        check(alike(x, y))
        walk.in_[i] = cnp.PyArray_DATA(x)
        for a in range(ndim):
            walk.in_step[i][a] = cnp.PyArray_STRIDE(x, a)
    if ps is not None:
        walk.p = <const double *>cnp.PyArray_DATA(ps)
    for a in range(ndim - 1, -1, -1):
        walk.shape[a] = cnp.PyArray_DIM(y, a)
        walk.y_step[a] = cnp.PyArray_STRIDE(y, a)
        walk.p_step[a] = 0 if ps is None else cnp.PyArray_STRIDE(ps, a) // 8
        walk.m_step[a] = <int64_t>step if whole else <int64_t><uint64_t>strides[a]
        step *= <uint64_t>walk.shape[a]
        last += <uint64_t>(walk.shape[a] - 1) * <uint64_t>walk.m_step[a]
    if cnp.PyArray_SIZE(y):
        check_stored(&walk.mask, mask, last)
    return ps


cdef fd_dtype dtype_of(cnp.ndarray x) except *:
    cdef int number = cnp.PyArray_TYPE(x)
    if number == cnp.NPY_FLOAT:
        return FD_F32
    if number == cnp.NPY_DOUBLE:
        return FD_F64
    if number == NPY_HALF:
        return FD_F16
    if (<object>x).dtype.name == "bfloat16":
        return FD_BF16
    raise TypeError(f"no kernel for dtype {(<object>x).dtype}")


def apply(cnp.ndarray y, cnp.ndarray x, Fields mask):
    sweep(FD_APPLY, dtype_of(y), y, (x,), mask)


def keep(cnp.ndarray out, Fields mask):
    sweep(FD_KEEP, FD_F32, out, (), mask)


def elementwise(str op, cnp.ndarray y, tuple inputs, Fields mask):
    """y = the operation of ops.def with that name; y may be one of the inputs."""
    cdef fd_op number = <fd_op><int>OPERATIONS[op]
    if len(inputs) != fd_op_inputs(number):
        raise TypeError(f"{op} has {fd_op_inputs(number)} inputs, got {len(inputs)}")
    sweep(number, dtype_of(y), y, inputs, mask)


def keep_bits(cnp.ndarray out, Fields mask, int64_t n):
    """Packed bits of a mask whose elements follow one another and that has one p."""
    cdef bits_job job
    source(&job.mask, mask)
    check(cnp.PyArray_ISCARRAY(out) and 0 < n <= 8 * cnp.PyArray_NBYTES(out))
    check_stored(&job.mask, mask, <uint64_t>n - 1)
    job.out = <uint8_t *>cnp.PyArray_DATA(out)
    job.p = mask._p
    job.n = n
    with nogil:
        fd_share(bits_range, &job, (n + BITS_UNIT - 1) // BITS_UNIT, threads if n >= SERIAL else 1)


cdef enum:
    BITS_UNIT = 4096  # elements

ctypedef struct bits_job:
    fd_source mask
    uint8_t *out
    double p
    int64_t n


cdef void bits_range(const void *job_, int64_t first, int64_t end) noexcept nogil:
    cdef const bits_job *job = <const bits_job *>job_
    cdef fd_source mask = job.mask
    mask.offset += <uint64_t>(first * BITS_UNIT)
    fd_keep_bits(job.out + first * BITS_UNIT // 8, mask, job.p, min(end * BITS_UNIT, job.n) - first * BITS_UNIT)


# -- the short way -------------------------------------------------------------------------------------------------------

cdef bint ordinary(cnp.ndarray y, cnp.ndarray x, int number):
    """Is writing y from x, of that dtype, one sweep over consecutive numbers?"""
    return (
        cnp.PyArray_TYPE(x) == cnp.PyArray_TYPE(y) == number
        and cnp.PyArray_ISCARRAY_RO(x)
        and cnp.PyArray_ISCARRAY(y)
        and cnp.PyArray_SAMESHAPE(y, x)
        and (y is x or apart(y, x))
    )


def dropout(x, p, rng, out):
    """`fastdrop.dropout` where nothing is out of the ordinary: (y, mask), or None and nothing done where anything is.

    Only speed is gained here; what is refused takes the long way, errors included.
    """
    cdef cnp.ndarray source, target
    cdef fd_walk walk
    cdef double drop
    cdef int64_t size
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
    if not ordinary(target, source, number):
        return None
    seed, stream = as_rng(rng).take()  # last, so that a call that raises takes no mask
    walk.mask.seed = seed
    walk.mask.stream = stream
    check(ordinary(target, source, number))  # another thread may have changed the arrays meanwhile
    size = cnp.PyArray_SIZE(source)
    mask = make(Mask, seed, stream, (<object>source).shape, p)
    walk.mask.offset = 0
    walk.mask.stored = NULL
    walk.dtype = FD_F32 if number == cnp.NPY_FLOAT else FD_F64 if number == cnp.NPY_DOUBLE else FD_F16
    walk.ndim = 1
    walk.y = cnp.PyArray_DATA(target)
    walk.op = FD_APPLY
    walk.in_[0] = cnp.PyArray_DATA(source)
    walk.in_[1] = walk.in_[2] = NULL
    walk.p = &drop
    walk.shape[0] = size
    walk.y_step[0] = walk.in_step[0][0] = cnp.PyArray_ITEMSIZE(source)
    walk.m_step[0] = 1
    walk.p_step[0] = 0
    if size < SERIAL:  # to give up the GIL and take it again costs a small array more than it is worth
        run(&walk, size)
    else:
        with nogil:
            run(&walk, size)
    return target, mask


cdef bint apart(cnp.ndarray a, cnp.ndarray b):
    """Do two contiguous arrays of the same size in bytes not share any?"""
    cdef char *p = <char *>cnp.PyArray_DATA(a)
    cdef char *q = <char *>cnp.PyArray_DATA(b)
    cdef int64_t bytes = cnp.PyArray_NBYTES(a)
    return p + bytes <= q or q + bytes <= p


include "rows.pxi"
include "samples.pxi"
