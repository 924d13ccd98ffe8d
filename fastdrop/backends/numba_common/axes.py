"""Axes and steps of arrays, as the Numba backends walk them."""


def c_steps(shape):
    """Steps, in elements, of a C-contiguous array."""
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))


def join(shape, *steps):
    """``shape`` and each of ``steps`` with as few axes as serve: no 1s, neighbours joined where all steps allow."""
    axes = []
    for n, *at in zip(shape, *steps, strict=True):
        if n == 1:
            continue
        if axes and all(outer == inner * n for outer, inner in zip(axes[-1][1:], at, strict=True)):
            axes[-1] = [axes[-1][0] * n, *at]
        else:
            axes.append([n, *at])
    return list(zip(*axes, strict=True)) if axes else [(1,)] * (1 + len(steps))
