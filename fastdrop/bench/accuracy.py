"""How exact the losses and the softmax are, on rows that are hard for float32, beside torch on the same rows.

``python -m fastdrop.bench.accuracy`` draws the rows afresh, prints the worst errors of every dtype and engine, and
fails where one is beyond `BOUNDS` or worse than torch.  `worst` is what ``fastdrop bench --only losses`` judges; the
tests use `inputs`, `exact` and `errors`.

Where two distributions nearly agree, or one class has nearly all of the probability, the textbook formulas subtract
numbers that are almost equal.  Those of the reference backend do not; `exact` is that in long double, and is itself
held against 400 digits by the tests.
"""

import argparse
import itertools
import math
import sys

import numpy as np

import fastdrop as fd

from .. import backends, config
from ..backends.reference.rows import Side, row_losses, wanted
from ..dtypes import FLOATS
from ..operations import LOSSES

ALPHA = 0.7
# As the Notes of `fastdrop.kl_div` and `fastdrop.softmax_dropout` say, of losses and gradients, by dtype; twice that
# for the scalar kernels, which have four lanes of sums and no fused multiply-add.
BOUNDS = {name: 1e-9 if each.computed_in is np.float64 else 5e-6 for name, each in FLOATS.items()}
FLAT = 2e-6  # errors of float32 below that are equal: both are the sum of a few roundings


def bound(dtype, engine):
    """The largest error that the documentation allows."""
    if engine in ("numba", "reference"):
        return min(BOUNDS[dtype], 1e-7)  # computed in float64
    return BOUNDS[dtype] * (2 if engine == "scalar" else 1)


# -- the truth ---------------------------------------------------------------------------------------------------------


def exact(op, a, b, labels, temperature=1.0, smoothing=0.0):
    """Loss of each row and its gradients, for finite losses, in long double.

    Parameters
    ----------
    op : str
        One of `LOSSES`; "r_drop" with `ALPHA`.
    a, b : ndarray of shape (rows, classes)
    labels : ndarray
        Integers of shape (rows,), or probabilities of a's shape.
    temperature, smoothing : float

    Returns
    -------
    loss : ndarray
    gradients : list of ndarray
    """
    kind = LOSSES[op]
    sides = [x.astype(np.longdouble) for x in (a, b)[: kind.sides]]
    gradients, (loss, divergence) = [np.empty_like(x) for x in sides], np.zeros((2, len(a)), np.longdouble)
    label, target = (labels, None) if kind.labels and labels.ndim == 1 else (None, labels if kind.labels else None)
    both = kind.sides == 2 and kind.labels
    alone = [None] * (2 - kind.sides)
    temperature, alpha, smoothing = (np.longdouble(x) for x in (temperature, ALPHA, smoothing))
    row_losses(
        kind.name, *sides, *alone, *gradients, *alone, label, target, None, loss, divergence if both else None,
        temperature, 1.0, alpha, smoothing,
    )  # fmt: skip
    return loss + alpha * divergence if both else loss, gradients


def _exact_softmax(scores, dy, keep, scale):
    """Y of `fastdrop.softmax_dropout`, the gradient of ``(y * dy).sum()``, and what their errors are relative to."""
    with np.errstate(all="ignore"):
        p = Side(scores.astype(np.longdouble), 1).p
    scale = np.longdouble(scale)
    g = np.where(keep, dy * scale, 0)
    sizes = [scale * p.max(-1, keepdims=True), p.max(-1, keepdims=True) * np.abs(g).max(-1, keepdims=True)]
    return [np.where(keep, p * scale, 0), p * (g - (p * g).sum(-1, keepdims=True))], sizes


# -- the rows ----------------------------------------------------------------------------------------------------------


def inputs(classes, dtype="float32", rows=8, seed=0):
    """Yield (name, a, b, labels) for each kind of adversarial rows."""
    rng = np.random.default_rng(seed)
    dtype = FLOATS[str(dtype)].dtype

    def normal(size=1.0):
        return rng.standard_normal((rows, classes)) * size

    labels = rng.integers(0, classes, rows)
    top = rng.integers(0, classes, rows)
    at_top = np.eye(classes)[top]
    height = rng.uniform(8, 40, (rows, 1))
    for apart in (0.5, 0.01, 1e-4):
        a = normal(2)
        yield f"{apart:g} apart", *_as(dtype, a, a + normal(apart)), labels
    yield "independent", *_as(dtype, normal(), normal()), labels
    for offset in (0.3, 5.0, 1000.0, 1e4):
        a = normal(2)
        yield f"offset {offset:g}", *_as(dtype, a, a + normal(0.1) + offset), labels
    yield "around 1e4", *_as(dtype, normal(2) + 1e4, normal(2) + 1e4 - 3), labels
    for apart in (0.5, 0.01):
        a = normal() + height * at_top
        yield f"one dominates, {apart:g} apart", *_as(dtype, a, a + normal(apart)), top
    yield "one dominates, no label", *_as(dtype, a, a + normal(0.5)), labels
    yield "each its own dominates", *_as(dtype, a, normal() + height * np.roll(at_top, 1, axis=1)), top
    a = normal(1)
    yield "one class differs", *_as(dtype, a, a + rng.uniform(0.1, 4, (rows, 1)) * at_top), labels
    a = normal(1) + 6 * at_top
    yield "the largest alone differs", *_as(dtype, a, a + rng.uniform(-3, 3, (rows, 1)) * at_top), labels
    yield "8 * normal, independent", *_as(dtype, normal(8), normal(8)), labels
    a = normal(30)
    yield "30 * normal", *_as(dtype, a, a + normal(0.1)), labels
    yield "30 * normal, independent", *_as(dtype, a, normal(30)), labels
    low = normal() - rng.uniform(87, 103, (rows, 1)) * np.eye(classes)[labels]
    yield "denormal label", *_as(dtype, low, low + normal(0.1)), labels
    low = normal(0.5) - 0.5 + (rng.uniform(80, 110, (rows, 1))) * at_top
    yield "denormal others", *_as(dtype, low, low + normal(0.5)), top
    if classes > 2:
        a = normal(2)
        b = a + normal(0.1)
        a[:, ::3] = b[:, ::3] = -np.inf
        yield "a third is -inf", *_as(dtype, a, b), np.where(labels % 3, labels, 1)


def probabilities(labels, classes, dtype="float32", seed=0):
    """Labels that are probabilities, near one-hot."""
    rng = np.random.default_rng(seed)
    t = rng.dirichlet(np.ones(classes), len(labels)) * 10.0 ** rng.uniform(-8, -1, (len(labels), 1))
    return (t + (1 - t.sum(-1, keepdims=True)) * np.eye(classes)[labels]).astype(FLOATS[str(dtype)].dtype)


def _as(dtype, *arrays):
    with np.errstate(over="ignore"):
        return [x.astype(dtype) for x in arrays]


# -- what is judged ----------------------------------------------------------------------------------------------------


def call(op, a, b, labels, **options):
    """Loss of each row and gradients by fastdrop."""
    smoothing = options.pop("smoothing", 0.0)
    if op == "cross_entropy":
        loss, *gradients = fd.cross_entropy(a, labels, label_smoothing=smoothing, reduction="none", **options)
    elif op == "r_drop":
        loss, _, _, *gradients = fd.r_drop(
            a, b, labels, alpha=ALPHA, label_smoothing=smoothing, reduction="none", **options
        )
    else:
        loss, *gradients = getattr(fd, op)(a, b, reduction="none", **options)
    return loss, gradients


def _torch_call(torch, op, a, b, labels, temperature=1.0, smoothing=0.0):
    """The same by torch, composed as its users do."""
    F = torch.nn.functional
    kind = LOSSES[op]
    leaves = [_tensor(torch, x).requires_grad_() for x in (a, b)[: kind.sides]]
    x = [leaf / temperature for leaf in leaves]
    logs = [F.log_softmax(one, -1) for one in x]
    loss = 0
    if kind.labels:
        t = _tensor(torch, labels)
        loss = sum(F.cross_entropy(one, t, label_smoothing=smoothing, reduction="none") for one in x) / len(x)
    if kind.sides == 2:
        p, q = logs

        def kl(p, q):
            return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)

        m = torch.logaddexp(p, q) - math.log(2)
        parts = (kind.forward, p, q), (kind.reverse, q, p), (kind.middle / 2, p, m), (kind.middle / 2, q, m)
        divergence = sum(weight * kl(x, y) for weight, x, y in parts if weight)
        loss = loss + (ALPHA if kind.labels else 1) * divergence
    loss.sum().backward()
    return loss.detach().double().numpy(), [leaf.grad.double().numpy() for leaf in leaves]


def _tensor(torch, x):
    return torch.tensor(x.view(np.uint16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.tensor(x)


def _half_unit(dtype, x):
    """Half a unit in the last place of x as a number of a 16-bit dtype; of the smallest number of others."""
    kind = FLOATS[dtype]
    digits = kind.digits if kind.itemsize == 2 else 99
    exponent = np.maximum(np.frexp(np.abs(x))[1] - 1 - digits, kind.least)
    return np.ldexp(np.longdouble(0.5), exponent)


def _off(got, want, size, rounding):
    """|got - want| over size, without what rounding may do; 0 where they are equal, inf where got is no number."""
    with np.errstate(all="ignore"):
        off = np.maximum(np.abs(got.astype(np.longdouble) - want) - rounding, 0) / size
    return np.where(got.astype(np.longdouble) == want, 0, np.where(np.isnan(off), np.inf, off))


def _compare(loss, gradients, known):
    """Worst error of a row's loss, and of the gradients relative to the row's largest."""
    good, wanted, sizes, dtype = known
    real = "float64" if dtype == "float64" else "float32"
    worst_gradient = max(
        _off(g, w, size, _half_unit(dtype, w)).max() for g, w, size in zip(gradients, wanted, sizes, strict=True)
    )
    return float(_off(loss, good, good, _half_unit(real, good)).max()), float(worst_gradient)


def truth(op, a, b, labels, **options):
    """What `exact` gives, and what errors of each row's gradients are relative to: its largest gradient.

    Where a cross entropy pulls the other way, be it R-Drop's, or labels that are no single class and p that nearly
    agrees with them, it is the largest of the terms that are subtracted.
    """
    good, wanted = exact(op, a, b, labels, **options)
    sizes = [np.abs(w).max(-1, keepdims=True) for w in wanted]
    if LOSSES[op].labels:
        share = len(wanted) * options.get("temperature", 1.0)
        terms = (_largest_term(x, labels, **options) / share for x in (a, b))
        sizes = [np.maximum(size, one) for size, one in zip(sizes, terms, strict=False)]
    return good, wanted, sizes, a.dtype.name


def _largest_term(a, labels, temperature=1.0, smoothing=0.0):
    """Of p and label over the classes; of the class with the largest logit 1 - p and 1 - label."""
    label, target = (labels, None) if labels.ndim == 1 else (None, labels)
    y = wanted(label, target, smoothing, np.ones(len(a), bool), a.shape)
    side = Side(a.astype(np.longdouble), temperature)
    others = (np.where(side.top, 0, x).sum(-1, keepdims=True) for x in (side.p, y))
    return np.maximum(*others)


def errors(op, a, b, labels, known=None, **options):
    """Largest relative error of a row's loss, and of its gradients relative to the row's largest.

    ``known``: what `truth` gives for these arguments, where it serves several engines.
    """
    known = truth(op, a, b, labels, **options) if known is None else known
    return _compare(*call(op, a, b, labels, **options), known)


def worst(op, classes):
    """The largest of `errors` over all `inputs`, and where."""
    found = [(name, *errors(op, *rest)) for name, *rest in inputs(classes)]
    loss, gradient = (max(found, key=lambda row, k=k: row[k]) for k in (1, 2))
    return {"loss_error": loss[1], "loss_where": loss[0], "gradient_error": gradient[2], "gradient_where": gradient[0]}


# -- the command -------------------------------------------------------------------------------------------------------

JUDGED = {  # name: the loss, with probabilities as labels?, smoothing
    **{op: (op, False, 0.0) for op in LOSSES},
    "cross_entropy, probabilities": ("cross_entropy", True, 0.0),
    "cross_entropy, smoothing": ("cross_entropy", False, 0.1),
    "r_drop, probabilities": ("r_drop", True, 0.1),
}
SOFTMAX = "softmax_dropout"


def engines():
    """Names of all engines here: the native backend's instruction sets, and the other backends."""
    return [*config.config()["isa found"], *(name for name in backends.available() if name != "native")]


def use(engine):
    """Let an engine do the next calls."""
    if engine in backends.available():
        fd.use_backend(engine)
    else:
        fd.use_backend("native")
        config._core.use_isa(engine)


def _softmax_cases(classes, dtype, rows, seed):
    for name, a, dy, _ in inputs(classes, dtype, rows, seed):
        dy = np.where(np.isfinite(dy), dy, 0).astype(dy.dtype)
        mask = fd.mask(a.shape, 0.25, rng=seed)
        truth = _exact_softmax(a, dy.astype(np.longdouble), mask.keep(), mask.scale)

        def compare(*got, truth=truth, dtype=a.dtype.name):
            triples = zip(got, *truth, strict=True)
            return [float(_off(g, want, size, _half_unit(dtype, want)).max()) for g, want, size in triples]

        def ours(a=a, dy=dy, mask=mask, compare=compare):
            y, _, log_sum = fd.softmax_dropout(a, mask=mask)
            return compare(y, fd.softmax_dropout_backward(dy, a, log_sum, mask))

        def theirs(torch, a=a, dy=dy, mask=mask, compare=compare):
            x = _tensor(torch, a).requires_grad_()
            y = torch.softmax(x, -1) * torch.tensor(mask.keep()) * float(mask.scale)
            y.backward(_tensor(torch, dy))
            return compare(*(t.detach().double().numpy() for t in (y, x.grad)))

        yield name, ours, theirs


def _loss_cases(judged, classes, dtype, rows, seed):
    op, probable, smoothing = JUDGED[judged]
    for (name, a, b, labels), temperature in zip(
        inputs(classes, dtype, rows, seed), itertools.cycle((1.0, 0.5, 4.0, 1.0)), strict=False
    ):
        if probable:
            labels = probabilities(labels, classes, dtype, seed)
            labels = np.where(np.isneginf(a), 0, labels).astype(labels.dtype)
        options = {"temperature": temperature, "smoothing": smoothing}
        if smoothing and np.isneginf(a).any():
            continue  # infinite
        if not LOSSES[op].labels:
            del options["smoothing"]
        known = truth(op, a, b, labels, **options)

        def ours(args=(op, a, b, labels, known), options=options):
            return errors(*args, **options)

        def theirs(torch, args=(op, a, b, labels), options=options, known=known):
            return _compare(*_torch_call(torch, *args, **options), known)

        yield f"{name}, T {temperature:g}", ours, theirs


def measure(seed, quick=False):
    """Yield (judged, dtype, found): by engine, and "torch", (loss error, where) and (gradient error, where).

    ``found["worse"]`` tells the cases in which torch is better by more than it may be.
    """
    try:
        import torch
    except ImportError:
        torch = None
    else:
        torch.set_num_threads(1)  # rows are few
    here = engines()
    before = fd.get_backend(), config.config()["isa"]
    sizes = [(2, 32), (3, 32), (10, 16)] + ([(1000, 2)] if quick else [(1000, 8)])
    rounds = 1 if quick else 4
    for judged, dtype in itertools.product((*JUDGED, SOFTMAX), BOUNDS):
        found = {"worse": []}
        for (classes, rows), turn in itertools.product(sizes, range(rounds)):
            seeds = [seed, turn, classes]
            own = int(np.random.SeedSequence(seeds).generate_state(1)[0])
            make = _softmax_cases if judged == SOFTMAX else lambda *args, judged=judged: _loss_cases(judged, *args)
            for name, ours, theirs in make(classes, dtype, rows, own):
                where = f"{classes} classes, {name}"
                of_torch = [math.inf, math.inf] if torch is None else theirs(torch)
                if torch is not None:
                    _note(found, "torch", of_torch, where, of_torch)
                for engine in here:
                    use(engine)
                    _note(found, engine, ours(), where, of_torch)
        yield judged, dtype, found
    if before[1]:
        config._core.use_isa(before[1])
    fd.use_backend(before[0])


def _note(found, engine, pair, where, theirs):
    best = found.setdefault(engine, [(0.0, ""), (0.0, "")])
    for i, error in enumerate(pair):
        if error > best[i][0]:
            best[i] = error, where
        if engine != "torch" and error > max(FLAT, 2 * theirs[i]) * (2 if engine == "scalar" else 1):
            found["worse"].append(f"{engine}: {error:.2e} where torch has {theirs[i]:.2e}: {where}")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m fastdrop.bench.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="of the rows; default: a fresh one")
    parser.add_argument("--quick", action="store_true", help="a quarter of the rows")
    options = parser.parse_args(arguments)
    seed = np.random.SeedSequence().entropy % 2**32 if options.seed is None else options.seed
    print(f"Rows drawn with --seed {seed}. Worst relative error of a row's loss (softmax: of y, to the row's largest)")
    print("and, after it, of its gradients to the row's largest; rounding of stored 16-bit numbers is taken off.\n")
    columns = [*engines(), "torch"]
    print(f"{'':30}{'bound':>8}" + "".join(f"{name:>20}" for name in columns))
    faults = []
    for judged, dtype, found in measure(seed, options.quick):
        cells = (" / ".join(f"{error:.1e}" for error, _ in found[c]) if c in found else "-" for c in columns)
        print(f"{judged:30}{dtype}\n{'':30}{BOUNDS[dtype]:>8.0e}" + "".join(f"{c:>20}" for c in cells), flush=True)
        faults += [f"{judged} {dtype} {case}" for case in found["worse"]]
        faults += [
            f"{judged} {dtype} {engine}: {what} off by {error:.2e}: {where}"
            for engine in engines()
            for what, (error, where) in zip(("loss", "gradient"), found[engine], strict=True)
            if error > bound(dtype, engine)
        ]
    print("\n" + ("\n".join(faults) or "All within their bounds, and nowhere worse than torch."))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
