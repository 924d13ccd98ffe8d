# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The border between Python and the C kernels: arrays in, work shared among threads, nothing decided.

The files in src/ know no Python and no threads; the modules of this package know no pointers.  Here a checked array
becomes an `fd_walk`, and its units are cut among OpenMP threads.  No maths.
"""

from cpython.buffer cimport PyBuffer_FillInfo, PyObject_GetBuffer
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint64_t, uint8_t
cimport numpy as cnp
import numpy as np

from .rng import as_rng

cnp.import_array()

Mask = None  # the class that `make` makes here, set by fastdrop.maskss

cdef extern from "fastdrop.h" nogil:
    enum: FD_MAX_NDIM, FD_INPUTS
    cdef enum fd_dtype:
        FD_F32, FD_F64, FD_F16, FD_BF16
    cdef enum fd_op:
        FD_APPLY, FD_ADD, FD_BIAS_ADD, FD_RELU, FD_RELU_BACKWARD, FD_GELU, FD_GELU_BACKWARD, FD_KEEP
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
    void fd_plan(fd_walk *walk)
    void fd_run(const fd_walk *walk, int64_t first_unit, int64_t last_unit)
    void fd_keep_bits(uint8_t *out, fd_source mask, double p, int64_t n)
    const char *fd_isa()
    const char *const *fd_isa_found()
    int fd_use_isa(const char *name)

cdef extern from "blocks.h" nogil:
    enum: FD_BLOCK_UNIT
    void *fd_block_take(size_t bytes)
    void fd_block_give(void *block, size_t bytes)
    void fd_blocks_limit(size_t bytes)
    size_t fd_blocks_kept()
    void fd_blocks_release()

cdef extern from "numpy/arrayobject.h":
    enum: NPY_HALF
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray prototype, cnp.NPY_ORDER order, cnp.PyArray_Descr *dtype, int subok)

cdef extern from *:
    """
    /* numpy.asarray(mask) asks the buffer protocol before it asks __array__, and cannot be told apart from memoryview(mask)
     * by anything in the request. The first wants the multipliers, the second the packed bits; so the exporter looks
     * who is asking: whether NumPy's C module stands right above Python's memoryview on the C stack. */
    #if defined(__GLIBC__)
    #include <dlfcn.h>  /* Python.h has defined _GNU_SOURCE */
    #include <execinfo.h>
    #include <string.h>
    static int fd_numpy_asks(void)
    {
        void *frame[16];
        int n = backtrace(frame, 16), foreign = 0;
        Dl_info own, info;
        if (!dladdr((const void *)fd_numpy_asks, &own))
            return 1;
        for (int i = 1; i < n && foreign < 4; i++) {
            if (!dladdr(frame[i], &info) || info.dli_fbase == own.dli_fbase)
                continue;
            if (strstr(info.dli_fname, "_multiarray_umath"))
                return 1;
            foreign++;
        }
        return 0;
    }
    #else
    static int fd_numpy_asks(void) { return 1; }  /* __array__ must work everywhere; mask.bits() says the rest */
    #endif
    #if defined(_OPENMP)
    static const int fd_openmp = 1;
    #else
    static const int fd_openmp = 0;
    #endif
    """
    int fd_numpy_asks() nogil
    const int fd_openmp

OPENMP = bool(fd_openmp)
MAX_NDIM = FD_MAX_NDIM

cdef enum:
    SERIAL = 1 << 18  # elements under which waking threads costs more than it gains

cdef int threads = 1          # set by fastdrop.threads
cdef bint forked = False      # in a child of a process that had used OpenMP a parallel region would hang in libgomp


def set_threads(int n):
    global threads
    threads = n


def after_fork():
    global forked
    forked = fd_openmp


def serial_only():
    """True in a forked child, whose parent, or another library in it, may have started OpenMP threads."""
    return forked


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

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if fd_numpy_asks():
            raise BufferError("NumPy takes a mask's multipliers through __array__; mask.bits() has its packed bits")
        bits = self.bits()
        bits.flags.writeable = False  # it is a copy: what is written to it would be lost
        PyObject_GetBuffer(bits, buffer, flags)


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


cdef cnp.ndarray empty_like(cnp.ndarray x):
    """An uninitialised array in x's layout and dtype; from a block where it is large and x's elements are close-packed."""
    cdef Block block = None
    if cnp.PyArray_IS_C_CONTIGUOUS(x) or cnp.PyArray_IS_F_CONTIGUOUS(x):
        block = block_of(<size_t>cnp.PyArray_NBYTES(x))
    if block is None:
        return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    return np.ndarray((<object>x).shape, (<object>x).dtype, block, 0, (<object>x).strides)


def new_bytes(size_t n):
    block = block_of(n)
    return np.empty(n, np.uint8) if block is None else np.ndarray((n,), np.uint8, block)


def new_like(cnp.ndarray x):
    return empty_like(x)


def set_buffer_limit(size_t bytes):
    fd_blocks_limit(bytes)


def kept_bytes():
    return fd_blocks_kept()


def release_buffers():
    fd_blocks_release()


# -- dropout ------------------------------------------------------------------------------------------------------------

cdef int run(fd_walk *walk, int64_t size) except -1 nogil:
    """Cut the units of a planned walk among threads. The cut changes no bit of the result."""
    cdef int64_t part, parts, units
    fd_plan(walk)
    units = walk.units
    parts = threads
    if parts == 1 or forked or size < SERIAL or units < 2:
        fd_run(walk, 0, units)
        return 0
    if parts > units:
        parts = units
    for part in prange(parts, num_threads=<int>parts, schedule="static"):
        fd_run(walk, units * part // parts, units * (part + 1) // parts)
    return 0


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


cdef int sweep(fd_op op, fd_dtype dtype, cnp.ndarray y, tuple inputs, Fields mask) except -1:
    cdef fd_walk walk
    cdef double p
    fill(&walk, &p, op, dtype, y, inputs, mask)
    with nogil:
        run(&walk, cnp.PyArray_SIZE(y))
    return 0


def way(cnp.ndarray y, cnp.ndarray x, mask):
    """How `apply` would go about these arrays; for tests that a fast way has not been lost."""
    cdef fd_walk walk
    cdef double p
    cdef int last, a
    fill(&walk, &p, FD_APPLY, dtype_of(y), y, (x,), mask)
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


cdef int fill(fd_walk *walk, double *p, fd_op op, fd_dtype dtype, cnp.ndarray y, tuple inputs, Fields mask) except -1:
    """The upper part of ``walk``; ``p`` is where a scalar p is kept. An array p is a view of the mask's, which lives on."""
    cdef cnp.ndarray ps, x
    cdef int a, i, ndim = cnp.PyArray_NDIM(y)
    cdef uint64_t step = 1
    cdef bint whole
    source(&walk.mask, mask)
    walk.op = op
    walk.dtype = dtype
    walk.ndim = ndim
    walk.y = cnp.PyArray_DATA(y)
    for i in range(FD_INPUTS):
        walk.in_[i] = NULL
    for i, x in enumerate(inputs):
        walk.in_[i] = cnp.PyArray_DATA(x)
        for a in range(ndim):
            walk.in_step[i][a] = cnp.PyArray_STRIDE(x, a)
    shape = (<object>y).shape
    if type(mask._p) is float:
        p[0] = mask._p
        walk.p = p
        ps = None
    else:
        ps = np.broadcast_to(mask.wide_p(), shape)
        walk.p = <const double *>cnp.PyArray_DATA(ps)
    whole = mask._strides is None and shape == mask._shape
    if not whole:
        strides = mask.strides_for(shape)
    for a in range(ndim - 1, -1, -1):
        walk.shape[a] = cnp.PyArray_DIM(y, a)
        walk.y_step[a] = cnp.PyArray_STRIDE(y, a)
        walk.p_step[a] = 0 if ps is None else cnp.PyArray_STRIDE(ps, a) // 8
        walk.m_step[a] = <int64_t>step if whole else <int64_t><uint64_t>strides[a]
        step *= <uint64_t>walk.shape[a]
    return 0


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


def dropout_add(cnp.ndarray y, cnp.ndarray x, cnp.ndarray residual, bias, Fields mask):
    if bias is None:
        sweep(FD_ADD, dtype_of(y), y, (x, residual), mask)
    else:
        sweep(FD_BIAS_ADD, dtype_of(y), y, (x, residual, bias), mask)


def relu_dropout(cnp.ndarray y, cnp.ndarray x, Fields mask):
    sweep(FD_RELU, dtype_of(y), y, (x,), mask)


def relu_dropout_backward(cnp.ndarray dx, cnp.ndarray dy, cnp.ndarray x, Fields mask):
    sweep(FD_RELU_BACKWARD, dtype_of(dx), dx, (dy, x), mask)


def gelu_dropout(cnp.ndarray y, cnp.ndarray x, Fields mask):
    sweep(FD_GELU, dtype_of(y), y, (x,), mask)


def gelu_dropout_backward(cnp.ndarray dx, cnp.ndarray dy, cnp.ndarray x, Fields mask):
    sweep(FD_GELU_BACKWARD, dtype_of(dx), dx, (dy, x), mask)


def keep_bits(cnp.ndarray out, Fields mask, int64_t n):
    """Packed bits of a mask whose elements follow one another and that has one p."""
    cdef fd_source s
    cdef uint8_t *bytes = <uint8_t *>cnp.PyArray_DATA(out)
    cdef double p = mask._p
    cdef int64_t part, parts, chunk
    source(&s, mask)
    parts = 1 if forked or n < SERIAL else threads
    chunk = ((n + parts - 1) // parts + 255) // 256 * 256
    parts = (n + chunk - 1) // chunk
    if parts == 1:
        with nogil:
            fd_keep_bits(bytes, s, p, n)
        return
    for part in prange(parts, num_threads=<int>parts, schedule="static", nogil=True):
        some_bits(bytes + part * chunk // 8, s, p, part * chunk, min(chunk, n - part * chunk))


cdef void some_bits(uint8_t *out, fd_source s, double p, int64_t at, int64_t n) noexcept nogil:
    s.offset += <uint64_t>at
    fd_keep_bits(out, s, p, n)


# -- the short way -------------------------------------------------------------------------------------------------------

cdef inline bint plain(cnp.ndarray x):
    """C-contiguous, aligned, of native byte order."""
    return cnp.PyArray_ISCARRAY_RO(x)


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
    if type(x) is not np.ndarray or type(p) is not float:
        return None
    source = x
    drop = p
    number = cnp.PyArray_TYPE(source)
    size = cnp.PyArray_SIZE(source)
    if not (0.0 < drop <= 1.0 and size and plain(source)) or number not in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE, NPY_HALF):
        return None
    if out is None:
        target = empty_like(source)
    elif out is x:
        target = source
        if not cnp.PyArray_ISWRITEABLE(target):
            return None
    else:
        if type(out) is not np.ndarray:
            return None
        target = out
        if not (
            cnp.PyArray_TYPE(target) == number
            and cnp.PyArray_SAMESHAPE(target, source)
            and cnp.PyArray_ISCARRAY(target)
            and apart(target, source)
        ):
            return None
    seed, stream = as_rng(rng).take()
    mask = make(Mask, seed, stream, x.shape, p)
    walk.mask.seed = seed
    walk.mask.stream = stream
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
    if size < SERIAL:
        fd_plan(&walk)
        fd_run(&walk, 0, walk.units)
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
