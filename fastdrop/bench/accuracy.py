"""How exact the losses are, on inputs that are hard for float32: against formulas in long double that cancel nowhere.

Where two distributions nearly agree, or one class has nearly all of the probability, the textbook formulas subtract
numbers that are almost equal. Here p - q is p * (1 - exp(-log(p / q))) by expm1, 1 - p is the sum of what the other
classes have, and what a divergence does not keep of its first-order terms is left out before it is summed.

``python -m fastdrop.bench.accuracy`` prints the table, `worst` is what ``fastdrop bench --only losses`` judges, and the
tests use both.
"""

import numpy as np

import fastdrop as fd

LOSSES = ("kl_div", "symmetric_kl", "js_div", "cross_entropy", "r_drop")
ALPHA = 0.7


def _softmax(x):
    x = x.astype(np.longdouble)
    x = x - x.max(-1, keepdims=True)
    e = np.exp(x)
    total = e.sum(-1, keepdims=True)
    return e / total, x - np.log(total)


def _times(p, x):
    return np.where(p == 0, 0, p * x)


def _mean(p, x):
    return _times(p, x).sum(-1, keepdims=True)


def _cross_entropy(p, log_p, labels):
    label = np.arange(p.shape[-1]) == labels[:, None]
    rest = np.where(label, 0, p).sum(-1, keepdims=True)
    loss = np.where(rest < 0.5, -np.log1p(-np.minimum(rest, 0.5)), -log_p[label][:, None])
    return loss[:, 0], np.where(label, -rest, p)


def exact(op, a, b, labels):
    """Loss of each row and its gradients, for finite losses, in long double.

    Parameters
    ----------
    op : str
        One of `LOSSES`; "r_drop" with `ALPHA`.
    a, b : ndarray of shape (rows, classes)
    labels : ndarray of int of shape (rows,)

    Returns
    -------
    loss : ndarray
    gradients : list of ndarray
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        p, log_p = _softmax(a)
        if op == "cross_entropy":
            loss, da = _cross_entropy(p, log_p, labels)
            return loss, [da]
        q, log_q = _softmax(b)
        ratio = np.where(log_p == log_q, 0, log_p - log_q)
        less = np.where(ratio > 0, -_times(p, np.expm1(-np.abs(ratio))), _times(q, np.expm1(-np.abs(ratio))))  # p - q
        if op == "kl_div":
            return _times(p, ratio + np.expm1(-ratio)).sum(-1), [_times(p, ratio - _mean(p, ratio)), -less]
        if op == "js_div":
            bend = np.log1p(np.expm1(-np.abs(ratio)) ** 2 / (4 * np.exp(-np.abs(ratio)))) / 2  # log(cosh(ratio / 2))
            p_log, q_log = ratio / 2 - bend, -ratio / 2 - bend
            loss = _times(p + q, np.tanh(ratio / 2) * ratio / 2 - bend).sum(-1) / 2
            return loss, [_times(p, p_log - _mean(p, p_log)) / 2, _times(q, q_log - _mean(q, q_log)) / 2]
        da = (_times(p, ratio - _mean(p, ratio)) + less) / 2
        db = (_times(q, _mean(q, ratio) - ratio) - less) / 2
        kl = _times(less, ratio).sum(-1) / 2
        if op == "symmetric_kl":
            return kl, [da, db]
        ce_a, ga = _cross_entropy(p, log_p, labels)
        ce_b, gb = _cross_entropy(q, log_q, labels)
        return (ce_a + ce_b) / 2 + ALPHA * kl, [ga / 2 + ALPHA * da, gb / 2 + ALPHA * db]


def call(op, a, b, labels):
    """The same by fastdrop."""
    if op == "cross_entropy":
        loss, *gradients = fd.cross_entropy(a, labels, reduction="none")
    elif op == "r_drop":
        loss, _, _, *gradients = fd.r_drop(a, b, labels, alpha=ALPHA, reduction="none")
    else:
        loss, *gradients = getattr(fd, op)(a, b, reduction="none")
    return loss, gradients


def inputs(classes, dtype="float32", rows=8, seed=0):
    """Yield (name, a, b, labels)."""
    rng = np.random.default_rng(seed)

    def normal(size):
        return rng.standard_normal((rows, classes)) * size

    labels = rng.integers(1, classes, rows)
    likely = np.full(rows, classes // 2)
    a = normal(2)
    for apart in (0.5, 0.01, 1e-4):
        yield f"{apart:g} apart", *(x.astype(dtype) for x in (a, a + normal(apart))), labels
    yield "independent", *(x.astype(dtype) for x in (normal(1), normal(1))), labels
    top = a.copy()
    top[:, classes // 2] = 8 + np.arange(rows) / 2
    yield "one class dominates", *(x.astype(dtype) for x in (top, top + normal(0.5))), likely
    a = normal(2) + 1e4
    yield "logits of 1e4", *(x.astype(dtype) for x in (a, a - 3 + normal(0.1))), labels
    a = normal(2)
    b = a + normal(0.1)
    a[:, ::3] = b[:, ::3] = -np.inf
    yield "a third is -inf", *(x.astype(dtype) for x in (a, b)), np.where(labels % 3, labels, 1)


def errors(op, a, b, labels):
    """Largest relative error of a row's loss, and of its gradients relative to the row's largest.

    R-Drop's two terms pull against each other: there it is the largest of the sum or of the cross entropy's part.
    """
    loss, gradients = call(op, a, b, labels)
    good, wanted = exact(op, a, b, labels)
    sizes = [np.abs(w).max(-1) for w in wanted]
    if op == "r_drop":
        parts = (exact("cross_entropy", x, None, labels)[1][0] / 2 for x in (a, b))
        sizes = [np.maximum(size, np.abs(part).max(-1)) for size, part in zip(sizes, parts, strict=True)]
    off = [np.abs(g - w).max(-1) / size for g, w, size in zip(gradients, wanted, sizes, strict=True)]
    return float((np.abs(loss - good) / good).max()), float(np.max(off))


def worst(op, classes):
    """The largest of `errors` over all `inputs`, and where."""
    found = [(name, *errors(op, *rest)) for name, *rest in inputs(classes)]
    loss, gradient = (max(found, key=lambda row, k=k: row[k]) for k in (1, 2))
    return {"loss_error": loss[1], "loss_where": loss[0], "gradient_error": gradient[2], "gradient_where": gradient[0]}


def main():
    print("float32: relative error of the loss / of the gradients to their row's largest, worst of 8 rows")
    for classes in (10, 1000, 32000):
        print(f"\n{f'{classes} classes':22}" + "".join(f"{op:>20}" for op in LOSSES))
        for name, *rest in inputs(classes):
            cells = ("{:.0e} / {:.0e}".format(*errors(op, *rest)) for op in LOSSES)
            print(f"{name:22}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
