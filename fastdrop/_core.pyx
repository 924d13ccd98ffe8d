# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The border between Python and the C kernels: arrays in, work shared among threads, nothing decided.

The files in src/ know no Python and no threads; the modules of this package know no pointers.  Here a checked array
becomes an `fd_walk`, and its units are cut among OpenMP threads.  No maths.
"""

from cpython.buffer cimport PyObject_GetBuffer
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint64_t, uint8_t
cimport numpy as cnp
import numpy as np

cnp.import_array()

cdef extern from "fastdrop.h" nogil:
    enum: FD_MAX_NDIM
    cdef enum fd_dtype:
        FD_F32, FD_F64, FD_F16, FD_BF16, FD_BOOL
    ctypedef struct fd_source:
        uint64_t seed, stream, offset
        const uint8_t *stored
    ctypedef struct fd_walk:
        fd_dtype dtype
        int ndim
        fd_source mask
        void *y
        const void *x
        const double *p
        int64_t *shape
        int64_t *y_step
        int64_t *x_step
        int64_t *m_step
        int64_t *p_step
        int64_t units
    void fd_plan(fd_walk *walk)
    void fd_run(const fd_walk *walk, int64_t first_unit, int64_t last_unit)
    void fd_keep_bits(uint8_t *out, fd_source mask, double p, int64_t n)
    const char *fd_isa()
    const char *const *fd_isa_found()
    int fd_use_isa(const char *name)

cdef extern from "numpy/arrayobject.h":
    enum: NPY_HALF

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
    SERIAL = 1 << 16  # elements under which starting threads costs more than it gains

cdef int threads = 1          # set by fastdrop.threads
cdef bint used_threads = False
cdef bint forked = False      # a child of a process that had used OpenMP: a parallel region would hang in libgomp


def set_threads(int n):
    global threads
    threads = n


def after_fork():
    global forked
    forked = used_threads


def serial_only():
    """True in a forked child whose parent had started OpenMP threads."""
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


cdef class BitsExporter:
    """Gives a mask's packed bits through the buffer protocol; `fastdrop.Mask` derives from it."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if fd_numpy_asks():
            raise BufferError("NumPy takes a mask's multipliers through __array__; mask.bits() has its packed bits")
        PyObject_GetBuffer(self.bits(), buffer, flags)


cdef int run(fd_walk *walk, int64_t size) except -1 nogil:
    """Cut the units of a planned walk among threads. The cut changes no bit of the result."""
    global used_threads
    cdef int64_t part, parts, units
    fd_plan(walk)
    units = walk.units
    parts = threads
    if parts == 1 or forked or size < SERIAL or units < 2:
        fd_run(walk, 0, units)
        return 0
    used_threads = True
    if parts > units:
        parts = units
    for part in prange(parts, num_threads=<int>parts, schedule="static"):
        fd_run(walk, units * part // parts, units * (part + 1) // parts)
    return 0


cdef int source(fd_source *out, object mask) except -1:
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


cdef int sweep(fd_dtype dtype, cnp.ndarray y, cnp.ndarray x, object mask) except -1:
    cdef fd_walk walk
    cdef double p
    cdef cnp.ndarray ps
    cdef int a, ndim = cnp.PyArray_NDIM(y)
    cdef int64_t size = cnp.PyArray_SIZE(y)
    source(&walk.mask, mask)
    walk.dtype = dtype
    walk.ndim = ndim
    walk.y = cnp.PyArray_DATA(y)
    walk.x = NULL if x is None else cnp.PyArray_DATA(x)
    if type(mask._p) is float:
        p = mask._p
        walk.p = &p
        ps = None
    else:
        ps = np.broadcast_to(mask.wide_p(), (<object>y).shape)
        walk.p = <const double *>cnp.PyArray_DATA(ps)
    shape = (<object>y).shape
    cdef uint64_t step = 1
    cdef bint whole = mask._strides is None and shape == mask._shape
    if not whole:
        strides = mask.strides_for(shape)
    for a in range(ndim - 1, -1, -1):
        walk.shape[a] = cnp.PyArray_DIM(y, a)
        walk.y_step[a] = cnp.PyArray_STRIDE(y, a)
        walk.x_step[a] = 0 if x is None else cnp.PyArray_STRIDE(x, a)
        walk.p_step[a] = 0 if ps is None else cnp.PyArray_STRIDE(ps, a) // 8
        walk.m_step[a] = <int64_t>step if whole else <int64_t><uint64_t>strides[a]
        step *= <uint64_t>walk.shape[a]
    with nogil:
        run(&walk, size)
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


def apply(cnp.ndarray y, cnp.ndarray x, mask):
    sweep(dtype_of(y), y, x, mask)


def keep(cnp.ndarray out, mask):
    sweep(FD_BOOL, out, None, mask)


def keep_bits(cnp.ndarray out, mask, int64_t n):
    """Packed bits of a mask whose elements follow one another and that has one p."""
    cdef fd_source s
    cdef uint8_t *bytes = <uint8_t *>cnp.PyArray_DATA(out)
    cdef double p = mask._p
    cdef int64_t part, parts, chunk
    global used_threads
    source(&s, mask)
    parts = 1 if forked or n < SERIAL else threads
    chunk = ((n + parts - 1) // parts + 255) // 256 * 256
    parts = (n + chunk - 1) // chunk
    if parts == 1:
        with nogil:
            fd_keep_bits(bytes, s, p, n)
        return
    used_threads = True
    for part in prange(parts, num_threads=<int>parts, schedule="static", nogil=True):
        some_bits(bytes + part * chunk // 8, s, p, part * chunk, min(chunk, n - part * chunk))


cdef void some_bits(uint8_t *out, fd_source s, double p, int64_t at, int64_t n) noexcept nogil:
    s.offset += <uint64_t>at
    fd_keep_bits(out, s, p, n)
