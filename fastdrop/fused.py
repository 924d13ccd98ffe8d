"""Dropout together with what stands next to it in a network: one pass over memory instead of two or three.

Each is elementwise, keeps nothing for the backward but what the caller has anyway, and works on the same masks as
`dropout`: ``fd.dropout_add(x, r, mask=mask)`` drops what ``fd.dropout(x, mask=mask)`` drops. float16 and bfloat16 are
worked on in float32 and rounded once.
"""

import numpy as np

from . import backends
from .arguments import check_mask_shape, check_p, check_shape, fit_p
from .buffers import as_array, check_out, lend, new_like, on_cuda, on_device, overlaps, wide_dtype
from .masks import Mask, plain
from .rng import as_rng


def dropout_add(
    x, residual, p=0.5, *, bias=None, rng=None, mask=None, training=True, mask_shape=None, out=None, dtype=None
):  # fmt: skip
    """Bias, dropout and residual connection in one pass: ``dropout(x + bias) + residual``.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    residual : array_like
        Of x's dtype; broadcasts to x's shape.
    p : float or array_like, default 0.5
        Probability to drop, in [0, 1].
    bias : array_like, optional
        Of x's dtype; broadcasts to x's shape (usually one number a feature, of shape ``x.shape[-1:]``).
    rng, mask, training, mask_shape, dtype
        As in `dropout`; the mask must broadcast to x's shape.
    out : array_like, optional
        Where to write; may be ``x`` or ``residual``.

    Returns
    -------
    y : ndarray or ``out``
    mask : Mask

    Raises
    ------
    TypeError, ValueError
        As `dropout`; also if ``residual`` or ``bias`` has another dtype or does not broadcast to x's shape.

    See Also
    --------
    dropout_add_backward

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> x = np.ones((2, 4))
    >>> y, mask = fd.dropout_add(x, np.full((2, 4), 10.0), 0.5, bias=np.arange(4.0), rng=0)
    >>> y
    array([[10., 10., 16., 18.],
           [10., 10., 10., 10.]])
    """
    if type(x) is not np.ndarray and on_device(x):
        return on_cuda(dtype).dropout_add(
            x, residual, p, bias=bias, rng=rng, mask=mask, training=training, mask_shape=mask_shape, out=out
        )
    inputs = {"x": x, "residual": residual}
    if bias is not None:
        inputs["bias"] = bias

    def run(y, mask, x, residual, bias=None):
        backends.current().dropout_add(y, x, residual, bias, mask)

    return _forward(run, inputs, p, rng, mask, training, mask_shape, out, dtype)


def dropout_add_backward(dy, mask, *, bias_shape=None, out=None, dtype=None):
    """Gradients of `dropout_add`; that of the residual is ``dy`` itself.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    mask : Mask
        What `dropout_add` returned.
    bias_shape : tuple of int, optional
        The bias's shape, if there was one.
    out : array_like, optional
        Where to write dx; may be ``dy`` where the caller needs it no more.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    dx : ndarray or ``out``
    dbias : ndarray or None
        dx summed over the axes along which the bias was shared, part by part while they are in cache, in float32
        (float64 for float64) and in an order that does not depend on the number of threads.

    Raises
    ------
    TypeError, ValueError
        As `dropout_backward`; also if ``bias_shape`` does not broadcast to dy's shape.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> x = np.ones((2, 4))
    >>> y, mask = fd.dropout_add(x, x, 0.5, bias=np.zeros(4), rng=0)
    >>> fd.dropout_add_backward(np.ones((2, 4)), mask, bias_shape=(4,))[1]
    array([0., 0., 2., 2.])
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a fastdrop.Mask, got {type(mask).__name__}")
    if type(dy) is not np.ndarray and on_device(dy):
        return on_cuda(dtype).dropout_add_backward(dy, mask, bias_shape=bias_shape, out=out)
    if bias_shape is None:
        return mask.backward(dy, out=out, dtype=dtype), None
    bias_shape = check_shape(bias_shape, "bias_shape")
    if type(dy) is not np.ndarray or (out is not None and type(out) is not np.ndarray) or dtype is not None:
        return lend(_with_bias, dy, mask, bias_shape, out=out, dtype=dtype, names=("dy",))
    return _with_bias(dy, mask, bias_shape, out=out)


def _with_bias(dy, mask, bias_shape, out):
    _fits("bias_shape", bias_shape, "dy", dy.shape)
    as_array(dy, "dy")
    _fits("mask", mask.shape, "dy", dy.shape)
    dx = _target(out, dy, ("dy",), (dy,))
    dbias = np.zeros((1,) * (dy.ndim - len(bias_shape)) + bias_shape, wide_dtype(dy.dtype))
    if dy.size:
        whole = dx if dx.flags.aligned and dx.dtype.isnative else np.empty(dx.shape, dx.dtype.newbyteorder("="))
        backends.current().apply_sum(dbias, plain(dy), mask, whole)
        if whole is not dx:
            dx[...] = whole
    return dx, dbias.reshape(bias_shape).astype(dy.dtype)


def relu_dropout(x, p=0.5, *, rng=None, mask=None, training=True, mask_shape=None, out=None, dtype=None):
    """ReLU and dropout in one pass: ``dropout(max(x, 0))``.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    p, rng, mask, training, mask_shape, dtype
        As in `dropout`; the mask must broadcast to x's shape.
    out : array_like, optional
        Where to write; may be ``x``.

    Returns
    -------
    y : ndarray or ``out``
    mask : Mask

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    See Also
    --------
    relu_dropout_backward

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.relu_dropout(np.array([[1.0, -1.0, 2.0, -2.0]]), 0.5, rng=0)
    >>> y
    array([[0., 0., 4., 0.]])
    >>> fd.relu_dropout_backward(np.ones((1, 4)), y, mask)
    array([[0., 0., 2., 0.]])
    """

    if type(x) is not np.ndarray and on_device(x):
        return on_cuda(dtype).relu_dropout(x, p, rng=rng, mask=mask, training=training, mask_shape=mask_shape, out=out)

    def run(y, mask, x):
        backends.current().relu_dropout(y, x, mask)

    return _forward(run, {"x": x}, p, rng, mask, training, mask_shape, out, dtype)


def relu_dropout_backward(dy, x, mask, *, out=None, dtype=None):
    """Gradient of `relu_dropout` with respect to its input.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    x : array_like
        The input of `relu_dropout`, or its result y, which is positive in the same kept places: so x need not be kept.
    mask : Mask
        What `relu_dropout` returned.
    out : array_like, optional
        Where to write; may be ``dy`` or ``x``.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    ndarray or ``out``
        ``dy * scale`` where x is positive and kept, +0.0 elsewhere.

    Raises
    ------
    TypeError, ValueError
        As `dropout`.
    """

    if type(dy) is not np.ndarray and on_device(dy):
        return on_cuda(dtype).relu_dropout_backward(dy, x, mask, out=out)

    def run(dx, mask, dy, x):
        backends.current().relu_dropout_backward(dx, dy, x, mask)

    return _backward(run, dy, x, mask, out, dtype)


def gelu_dropout(x, p=0.5, *, rng=None, mask=None, training=True, mask_shape=None, out=None, dtype=None):
    """GELU and dropout in one pass: ``dropout(x * Phi(x))``, Phi the normal distribution function (no tanh in its
    place).

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    p, rng, mask, training, mask_shape, dtype
        As in `dropout`; the mask must broadcast to x's shape.
    out : array_like, optional
        Where to write; may be ``x``, if the backward is not wanted.

    Returns
    -------
    y : ndarray or ``out``
        Right to 2e-7 of max(1, abs(x)), in float64 to 4e-16.
    mask : Mask

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    See Also
    --------
    gelu_dropout_backward

    References
    ----------
    Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv 1606.08415.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.gelu_dropout(np.array([[1.0, -1.0, 2.0, -2.0]]), 0.5, rng=0)
    >>> y.round(4)
    array([[ 0.   ,  0.   ,  3.909, -0.091]])
    """

    if type(x) is not np.ndarray and on_device(x):
        return on_cuda(dtype).gelu_dropout(x, p, rng=rng, mask=mask, training=training, mask_shape=mask_shape, out=out)

    def run(y, mask, x):
        backends.current().gelu_dropout(y, x, mask)

    return _forward(run, {"x": x}, p, rng, mask, training, mask_shape, out, dtype)


def gelu_dropout_backward(dy, x, mask, *, out=None, dtype=None):
    """Gradient of `gelu_dropout` with respect to x.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    x : array_like
        The input of `gelu_dropout`.
    mask : Mask
        What `gelu_dropout` returned.
    out : array_like, optional
        Where to write; may be ``dy`` or ``x``.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    ndarray or ``out``

    Raises
    ------
    TypeError, ValueError
        As `dropout`.
    """

    if type(dy) is not np.ndarray and on_device(dy):
        return on_cuda(dtype).gelu_dropout_backward(dy, x, mask, out=out)

    def run(dx, mask, dy, x):
        backends.current().gelu_dropout_backward(dx, dy, x, mask)

    return _backward(run, dy, x, mask, out, dtype)


# -- what they share: inputs checked, a mask taken last, one call of the backend -------------------------------------


def _forward(run, inputs, p, rng, mask, training, mask_shape, out, dtype):
    names, arrays = tuple(inputs), tuple(inputs.values())
    if dtype is not None or any(type(a) is not np.ndarray for a in (*arrays, *([] if out is None else [out]))):
        return lend(_run, *arrays, names, run, p, rng, mask, training, mask_shape, out=out, dtype=dtype, names=names)
    return _run(*arrays, names, run, p, rng, mask, training, mask_shape, out=out)


def _backward(run, dy, x, mask, out, dtype):
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a fastdrop.Mask, got {type(mask).__name__}")
    return _forward(run, {"dy": dy, "x": x}, 0.5, None, mask, True, None, out, dtype)[0]


def _run(*args, out):
    *arrays, names, run, p, rng, mask, training, mask_shape = args
    x = as_array(arrays[0], names[0])
    for name, a in zip(names[1:], arrays[1:], strict=True):
        if a.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
            raise TypeError(f"{name} must have {names[0]}'s dtype {x.dtype}, got {a.dtype}")
        _fits(name, a.shape, names[0], x.shape)
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"mask must be a fastdrop.Mask, got {type(mask).__name__}")
    if mask is None:
        shape = x.shape
        if mask_shape is not None:
            shape = check_mask_shape(mask_shape)
            _fits("mask_shape", shape, names[0], x.shape)
        p = fit_p(check_p(p), shape)
    else:
        shape = mask.shape
        _fits("mask", shape, names[0], x.shape)
    y = _target(out, x, names, arrays)
    if not training:
        mask = Mask._make(0, 0, shape, 0.0)
    elif mask is None:  # last, when nothing can fail any more: a call that raises takes no mask
        mask = Mask._make(*as_rng(rng).take(), shape, p)
    if y.size:
        whole = y if y.flags.aligned and y.dtype.isnative else np.empty(y.shape, y.dtype.newbyteorder("="))
        run(whole, mask, *(plain(np.broadcast_to(a, x.shape) if a.shape != x.shape else a) for a in arrays))
        if whole is not y:
            y[...] = whole
    return y, mask


def _fits(name, shape, whole_name, whole):
    lead = len(whole) - len(shape)
    if lead < 0 or any(m not in (1, n) for m, n in zip(shape, whole[lead:], strict=True)):
        raise ValueError(f"{name} of shape {shape} does not broadcast to {whole_name}'s shape {whole}")


def _target(out, x, names, arrays):
    if out is None:
        return new_like(x)
    check_out(out, "out", x.shape, x.dtype)
    for name, a in zip(names, arrays, strict=True):
        overlaps(out, a, name)
    return out
