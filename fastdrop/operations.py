"""The operations, declared once: of the elementwise ones what each computes, of which inputs, how exactly, and its
gradient; of the losses what they are made of.

Backends, `fastdrop.cuda`, benchmarks and tests read these lists; src/ops.def and src/losses.def have
the same names for C.  A formula is
plain NumPy, as the reference backend runs it on arrays.  Numba compiles the same functions for one element on the CPU
and on CUDA, so a formula is made of arithmetic, comparisons, other formulas and the functions of the first section,
which `numba_common.rule` knows how to compile.  A number becomes one of x's type by `like(x, number)`: in compiled code
a bare one is a double, and makes doubles of floats.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# -- what formulas are made of -----------------------------------------------------------------------------------------

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def like(x, number):
    """``number`` in the type of x."""
    return x.dtype.type(number)


def where(condition, a, b):
    """a where the condition holds, else b."""
    return np.where(condition, a, b)[()]


def exp(x):
    """e**x."""
    return np.exp(x)


def erfc(x):
    """The complementary error function."""
    return _erfc(x).astype(x.dtype)[()]


FORMULAS = []  # what Numba has to compile


def formula(function):
    """Declare what formulas call."""
    FORMULAS.append(function)
    return function


# -- declarations ------------------------------------------------------------------------------------------------------

OPERATIONS = {}  # by name
ACTIVATIONS = {}  # operations f(x) with a gradient f_backward(dy, x), by the public function f_dropout


@dataclass(frozen=True)
class Elementwise:
    """y = drop(value(*inputs)), where drop(v) is v * scale in kept places and +0.0 in others."""

    name: str
    value: Callable
    inputs: tuple  # their names, in the order of the kernels
    residual: bool = False  # the second input is added to what is left
    tolerance: int = 0  # as many 2**-24 (float64: 2**-53) of max(1, abs(x)), for a gradient times dy; 0: to the bit


def elementwise(activation=False, **facts):
    """Declare an operation by its formula, whose name and parameters are the operation's."""

    def declare(value):
        name = value.__name__
        OPERATIONS[name] = Elementwise(name, value, tuple(inspect.signature(value).parameters), **facts)
        if activation:
            ACTIVATIONS[f"{name}_dropout"] = OPERATIONS[name]
        return formula(value)

    return declare


@elementwise()
def apply(x):
    """Dropout, and on dy its gradient."""
    return x


@elementwise(residual=True)
def add(x, residual):
    """drop(x) + residual"""
    return x


@elementwise(residual=True)
def bias_add(x, residual, bias):
    """drop(x + bias) + residual"""
    return x + bias


@elementwise(activation=True)
def relu(x):
    """max(x, 0), where max(-0.0, 0) is +0.0 and a NaN stays one."""
    return where(x <= like(x, 0), like(x, 0), x)


@elementwise()
def relu_backward(dy, x):
    """x > 0 ? dy : 0; a NaN in x lets dy through."""
    return where(x <= like(x, 0), like(x, 0), dy)


FAR = 1e18  # x is cut there, beyond any sum that it comes into, so that inf * 0 does not come up


@formula
def at_least(x, low):
    """max(x, low), where a NaN stays one."""
    return where(x < like(x, low), like(x, low), x)


@formula
def cut(x):
    """x cut at -FAR and FAR."""
    return where(x > like(x, FAR), like(x, FAR), at_least(x, -FAR))


@formula
def phi(x):
    """The normal distribution function."""
    return like(x, 0.5) * erfc(-x * like(x, 0.7071067811865476))


@elementwise(activation=True, tolerance=4)
def gelu(x):
    """x * phi(x), by Hendrycks and Gimpel, arXiv 1606.08415."""
    return at_least(x, -FAR) * phi(x)


@elementwise(tolerance=8)
def gelu_backward(dy, x):
    """dy * (phi(x) + x * phi'(x))"""
    density = exp(like(x, -0.5) * x * x) * like(x, 0.3989422804014327)
    return dy * (phi(x) + cut(x) * density)


@formula
def sigmoid(x):
    """1 / (1 + exp(-x)), of an exponential that does not overflow."""
    e = exp(-abs(x))
    return where(x < like(x, 0), e, like(x, 1)) / (like(x, 1) + e)


@elementwise(activation=True, tolerance=3)
def silu(x):
    """x * sigmoid(x), by Elfwing, Uchibe and Doya, arXiv 1702.03118; also called swish."""
    return at_least(x, -FAR) * sigmoid(x)


@elementwise(tolerance=3)
def silu_backward(dy, x):
    """dy * (sigmoid(x) + x * sigmoid'(x))"""
    return dy * (sigmoid(x) + cut(x) * (sigmoid(x) * sigmoid(-x)))


# -- losses on rows of logits ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """A loss of p = softmax(a / T) and q = softmax(b / T); with m = (p + q) / 2 the divergence of the two is.

    forward * KL(p || q) + reverse * KL(q || p) + middle * (KL(p || m) + KL(q || m)) / 2
    """

    name: str
    sides: int = 2  # 1: of a alone
    labels: bool = False  # the mean cross entropy of the sides, and of two sides alpha times the divergence more
    forward: float = 0.0
    reverse: float = 0.0
    middle: float = 0.0


LOSSES = {  # by the public function
    "kl_div": Loss("kl", forward=1.0),
    "symmetric_kl": Loss("symmetric_kl", forward=0.5, reverse=0.5),
    "js_div": Loss("js", middle=1.0),
    "r_drop": Loss("r_drop", labels=True, forward=0.5, reverse=0.5),
    "cross_entropy": Loss("cross_entropy", sides=1, labels=True),
}
DIVERGENCES = [function for function, loss in LOSSES.items() if loss.sides == 2 and not loss.labels]
LOSSES_BY_NAME = {loss.name: loss for loss in LOSSES.values()}
