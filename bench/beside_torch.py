"""fastdrop.torch beside torch's own dropout: ``python bench/beside_torch.py``.

Both run in one process and in turn, A B A B, with the same threads: first one, then all.  Results are proved first:
what fastdrop gives is its mask's, and as much is kept as torch keeps.  A number above 1 says how many times as long
torch's takes; the last column is what it would be if dropout took no time at all.  ``THP_MEM_ALLOC_ENABLE=1`` lets
torch use huge pages.
"""

import argparse
import itertools
import os
import statistics

import torch
from torch import nn

import fastdrop as fd
import fastdrop.torch as fdt
from fastdrop.bench.measure import interleave, ratio

SIZES = 1 << 16, 1 << 20, 1 << 24


def prove():
    x = torch.randn(1000, 1000)
    y, mask = fdt.dropout(x, 0.1, generator=fd.Rng(1), return_mask=True)
    assert torch.equal(y, torch.from_numpy(mask.apply(x.numpy())))
    torch.testing.assert_close(y[y != 0], x[y != 0] / 0.9)
    kept = [float((f(torch.ones(1000, 1000), 0.1) != 0).float().mean()) for f in (fdt.dropout, nn.functional.dropout)]
    assert all(abs(part - 0.9) < 0.002 for part in kept), kept  # six deviations


def forward_and_backward(function, n):
    x, dy = torch.randn(n, requires_grad=True), torch.ones(n)
    return lambda: torch.autograd.grad(function(x, 0.1), x, dy)


def step_of(model, shape, classes=10):
    """A step of SGD on one batch, as a function."""
    x, labels = torch.randn(shape), torch.randint(0, classes, shape[:1])
    descent = torch.optim.SGD(model.parameters(), 0.01)

    def step():
        descent.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        descent.step()

    return step


def mlp(layer):
    widths, layers = (784, 200, 100, 60), [layer(0.2)]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU(), layer(0.2)]
    return step_of(nn.Sequential(*layers, nn.Linear(60, 10)), (128, 784))


def cnn(layer):
    layers = []
    for a, b in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), layer(0.2), nn.MaxPool2d(2)]
    return step_of(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 49, 10)), (64, 1, 28, 28))


def nothing(p):
    return nn.Identity()


def compare(what, ours, theirs, without=None, seconds=1.0):
    """Print a row: torch's time over ours, and over that without dropout where there is such a thing."""
    functions = {"ours": ours, "theirs": theirs} | ({"without": without} if without else {})
    taken = interleave(functions, seconds)
    limit = f"{ratio(taken['theirs'], taken['without']):8.2f}" if without else ""
    micro = statistics.median(taken["ours"]) * 1e6
    print(f"{what:52} {micro:10.1f} us {ratio(taken['theirs'], taken['ours']):8.2f} {limit}", flush=True)


def rows():
    x = torch.randn(1000)
    compare("1000 elements, no grad", lambda: fdt.dropout(x, 0.1), lambda: nn.functional.dropout(x, 0.1))
    compare("1000, forward + backward", *(forward_and_backward(f, 1000) for f in (fdt.dropout, nn.functional.dropout)))
    for n in SIZES:
        both = (forward_and_backward(f, n) for f in (fdt.dropout, nn.functional.dropout))
        compare(f"{n}, forward + backward", *both, seconds=2.0)
    for name, model in (("MLP 784-200-100-60-10, batch 128", mlp), ("CNN of two convolutions, batch 64", cnn)):
        compare(f"step of SGD, {name}", *(model(layer) for layer in (fdt.Dropout, nn.Dropout, nothing)), seconds=3.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="sizes up to 1M elements")
    if parser.parse_args().quick:
        global SIZES
        SIZES = SIZES[:2]
    prove()
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        fd.set_num_threads(threads)
        print(f"-- {threads} threads; ours, torch's time over ours, over none at all")
        rows()
    fd.show_config()


if __name__ == "__main__":
    main()
