"""Dropout on an NVIDIA GPU, proved and timed: `python bench/gpu.py`.

First every result is compared, bit by bit, with the reference on the CPU: the whole array up to 16 MiB, beyond that
its two ends, which the mask's slices make without its middle.  Then each function is timed with device events, in turn
with its rivals (A B C A B C), over buffers that rotate so that the cache does not hold them; the medians make one table
and bench/results/gpu-NAME.json.

Rates count what must be moved: forward and backward read and write each element once (copy: the same), bias + dropout +
residual reads two and writes one, r_drop reads two logits and writes two gradients.

Without torch only fastdrop and the copy are timed. In Numba's simulator everything runs at a size of a few kilobytes,
and its times mean nothing:

    NUMBA_ENABLE_CUDASIM=1 python bench/gpu.py
"""

import argparse
import json
import math
import os
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numba import config, cuda

import fastdrop as fd
import fastdrop.cuda as fdc
from fastdrop.backends import reference

SIMULATED = bool(config.ENABLE_CUDASIM)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = [4 * KIB] if SIMULATED else [MIB, 16 * MIB, 256 * MIB, GIB, 4 * GIB]
LOGITS = [(4, 50)] if SIMULATED else [(4096, 1000), (1024, 32000), (8192, 32000)]
WHOLE = 16 * MIB  # compared with the CPU from end to end
CACHED = 0 if SIMULATED else 256 * MIB  # four times the L2 of an H200: what the rotating buffers must exceed
P = 0.1


class Torch:
    """Buffers, clock and rivals where torch drives the device."""

    def __init__(self):
        import torch

        self.torch = torch
        self.name = torch.cuda.get_device_name()
        self.dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}

    def random(self, shape, dtype, seed=0):
        torch = self.torch
        generator = torch.Generator("cuda").manual_seed(seed)
        return torch.randn(shape, device="cuda", generator=generator).to(self.dtypes[dtype])

    def labels(self, rows, classes):
        return self.torch.randint(classes, (rows,), device="cuda")

    def empty(self, x):
        return self.torch.empty_like(x)

    def host(self, x, at):
        part = x.reshape(-1)[at].contiguous()
        return part.view(self.torch.uint8).cpu().numpy() if part.numel() else np.empty(0, np.uint8)

    def free(self):
        return self.torch.cuda.mem_get_info()[0]

    def seconds(self, function, sets):
        events = [self.torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        for buffers in sets:
            function(*buffers)
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1]) / 1e3 / len(sets)

    def copy(self, x, y, *_):
        y.copy_(x)

    def forward(self, x, *_):
        return self.torch.nn.functional.dropout(x, P)

    def both(self, x, y, dy, dx):
        leaf = x.detach().requires_grad_()
        self.torch.nn.functional.dropout(leaf, P).backward(dy)

    def native(self, x, y, dy, dx):
        _, kept = self.torch.native_dropout(x, P, True)
        self.torch.ops.aten.native_dropout_backward(dy, kept, 1 / (1 - P))

    def add(self, x, y, residual, bias):
        return residual + self.torch.nn.functional.dropout(x + bias, P)

    def r_drop(self, a, b, labels):
        functional = self.torch.nn.functional
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        log_p, log_q = functional.log_softmax(a, -1), functional.log_softmax(b, -1)
        ce = (functional.cross_entropy(a, labels) + functional.cross_entropy(b, labels)) / 2
        kl = functional.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
        kl = (kl + functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")) / 2
        (ce + kl).backward()


class Numba:
    """The same where there is no torch, and in the simulator."""

    def __init__(self):
        self.name = "simulator" if SIMULATED else cuda.get_current_device().name
        self.name = self.name.decode() if isinstance(self.name, bytes) else self.name

    def random(self, shape, dtype, seed=0):
        return cuda.to_device(np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype))

    def labels(self, rows, classes):
        return cuda.to_device(np.random.default_rng(0).integers(classes, size=rows))

    def empty(self, x):
        return cuda.device_array(x.shape, x.dtype)

    def host(self, x, at):
        return np.ascontiguousarray(x.reshape(-1)[at].copy_to_host()).view(np.uint8)

    def free(self):
        return 1 * MIB if SIMULATED else cuda.current_context().get_memory_info().free

    def seconds(self, function, sets):
        if SIMULATED:
            start = time.perf_counter()
            for buffers in sets:
                function(*buffers)
            return (time.perf_counter() - start) / len(sets)
        events = cuda.event(), cuda.event()
        events[0].record()
        for buffers in sets:
            function(*buffers)
        events[1].record()
        events[1].synchronize()
        return cuda.event_elapsed_time(*events) / 1e3 / len(sets)

    def copy(self, x, y, *_):
        y.copy_to_device(x)


def numpy_dtype(name):
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def prove(device, got, x, mask, more=()):
    """Compare with the CPU, bit by bit: all of it, or both ends; ``more`` is (residual, bias)."""
    n, dtype = math.prod(x.shape), numpy_dtype(str(x.dtype).removeprefix("torch."))
    ends = WHOLE // dtype.itemsize
    pieces = [slice(0, n)] if n <= ends else [slice(0, ends // 2), slice(n - ends // 2, n)]
    flat = fd.Mask._make(mask.seed, mask.stream, (n,), mask.p)
    for at in pieces:
        here = device.host(x, at).view(dtype)
        want = np.empty_like(here)
        if more:
            residual, bias = more
            wide = device.host(bias, slice(None)).view(dtype)
            wide = wide[np.arange(at.start, at.stop) % wide.size]
            reference.elementwise("bias_add", want, (here, device.host(residual, at).view(dtype), wide), flat[at])
        else:
            reference.apply(want, here, flat[at])
        assert np.array_equal(device.host(got, at), want.view(np.uint8)), f"bits differ from the CPU's in {at} of {n}"


def measure(device, functions, sets, seconds):
    """Median seconds of each function, run in turn."""
    taken = {name: [] for name in functions}
    if not SIMULATED:
        for function in functions.values():
            device.seconds(function, sets[:1])  # compiles
    begin = time.perf_counter()
    while len(taken["copy"]) < (1 if SIMULATED else 3) or (
        time.perf_counter() - begin < seconds and len(taken["copy"]) < 100
    ):
        for name, function in functions.items():
            taken[name].append(device.seconds(function, sets))
    return {name: statistics.median(values) for name, values in taken.items()}


def rotate(make, nbytes, free):
    """As many sets of buffers as exceed the cache, as far as memory goes."""
    most = max(1, int(free * 0.7) // nbytes)
    return [make(i) for i in range(min(most, max(2, -(-CACHED // nbytes)), 64))]


def dropout_cases(device, dtype, nbytes, seconds):
    itemsize = numpy_dtype(dtype).itemsize
    n = nbytes // itemsize
    columns = 64 if SIMULATED else 1024
    mask, plane = fd.mask(n, P, rng=1), fd.mask((n // columns, columns), P, rng=1)

    def forward(x, y, *_):
        fdc.apply(mask, x, y)

    def both(x, y, dy, dx):
        fdc.apply(mask, x, y)
        fdc.apply(mask, dy, dx)

    def add(x, y, residual, bias):
        fdc.dropout_add(x, residual, mask=plane, bias=bias, out=y)

    def four(i):
        x, dy = device.random(n, dtype, 2 * i), device.random(n, dtype, 2 * i + 1)
        return x, device.empty(x), dy, device.empty(dy)

    sets = rotate(four, 4 * nbytes, device.free())
    x, y, dy, dx = sets[0]
    both(x, y, dy, dx)
    prove(device, y, x, mask)
    prove(device, dx, dy, mask)
    functions = {"copy": device.copy, "forward": forward, "forward + backward": both}
    if isinstance(device, Torch):
        functions |= {"torch forward": device.forward, "torch forward + backward": device.both}
        functions["torch native_dropout, both"] = device.native
    times = measure(device, functions, sets, seconds)
    moved = {name: (4 if "both" in name or "backward" in name else 2) * nbytes for name in functions}

    bias = device.random(columns, dtype, 5)
    sets = [(*(one.reshape(n // columns, columns) for one in (x, y, dy)), bias) for x, y, dy, _ in sets]
    add(*sets[0])
    prove(device, sets[0][1], sets[0][0], plane, (sets[0][2], bias))
    functions = {"copy": device.copy, "bias + dropout + residual": add}
    if isinstance(device, Torch):
        functions["torch bias + dropout + residual"] = device.add
    more = measure(device, functions, sets, seconds)
    del more["copy"]
    moved |= dict.fromkeys(more, 3 * nbytes)
    return rows(f"{size_name(nbytes)} {dtype}", times | more, moved)


def r_drop_cases(device, dtype, shape, seconds):
    nbytes = math.prod(shape) * numpy_dtype(dtype).itemsize

    def three(i):
        a, b = device.random(shape, dtype, 2 * i), device.random(shape, dtype, 2 * i + 1)
        return a, b, device.labels(*shape)

    def r_drop(a, b, labels):
        return fdc.r_drop(a, b, labels, alpha=1.0)

    sets = rotate(three, 6 * nbytes, device.free())
    a, b, labels = sets[0]
    result = r_drop(a, b, labels)
    host = [device.host(one, slice(None)).view(numpy_dtype(dtype)).reshape(shape) for one in (a, b)]
    on_cpu = device.host(labels, slice(None)).view(np.int64)
    want = fd.r_drop(*host, on_cpu, alpha=1.0)
    loss = device.host(result.loss, slice(None)).view(np.float32)[0]
    assert math.isclose(loss, want.loss, rel_tol=2e-6), f"r_drop gives {loss}, the CPU {want.loss}"
    functions = {"copy": device.copy, "r_drop": r_drop}
    if isinstance(device, Torch):
        functions["torch r_drop"] = device.r_drop
    moved = {"copy": 2 * nbytes, "r_drop": 4 * nbytes, "torch r_drop": 4 * nbytes}
    return rows(f"{shape[0]} x {shape[1]} {dtype}", measure(device, functions, sets, seconds), moved)


def kept(device):
    """Bytes on the device that a forward pass keeps for the backward, beyond y: fastdrop's and torch's."""
    torch = device.torch
    x = device.random(MIB, "float32").requires_grad_()
    found = []
    for forward in (lambda: fd.dropout(x.detach(), P, rng=1), lambda: torch.nn.functional.dropout(x, P)):
        before = torch.cuda.memory_allocated()
        result = forward()
        found.append(torch.cuda.memory_allocated() - before - x.nbytes)
        del result
    return dict(zip(("fastdrop", "torch"), found, strict=True))


def rows(where, times, moved):
    copy = moved["copy"] / times["copy"]
    table = []
    for name, seconds in times.items():
        rate = moved[name] / seconds
        rival = times.get(f"torch {name}")
        table.append(
            {"where": where, "what": name, "us": seconds * 1e6, "GB/s": rate / 1e9, "of copy": rate / copy,
             "times torch": rival / seconds if rival else None}
        )  # fmt: skip
    return table


def size_name(nbytes):
    unit, name = next((u, n) for u, n in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if nbytes >= u)
    return f"{nbytes // unit} {name}"


def show(table):
    print(f"{'':28}{'':34}{'us':>12}{'GB/s':>9}{'of copy':>9}{'x torch':>9}")
    for row in table:
        torch = f"{row['times torch']:9.2f}" if row["times torch"] else ""
        print(f"{row['where']:28}{row['what']:34}{row['us']:12.1f}{row['GB/s']:9.1f}{row['of copy']:9.2f}{torch}")


def main():
    parser = argparse.ArgumentParser(description="Prove and time dropout on an NVIDIA GPU.")
    parser.add_argument("--seconds", type=float, default=0.0 if SIMULATED else 1.0, help="of timing, for each case")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="bytes of the largest array")
    parser.add_argument("--out", type=Path, help="where the JSON goes, default bench/results/gpu-NAME.json")
    options = parser.parse_args()
    device = Torch() if not SIMULATED and find_spec("torch") else Numba()
    dtypes = ["float32", "bfloat16"] if isinstance(device, Torch) else ["float32"]
    table = []
    for dtype in dtypes:
        for nbytes in SIZES:
            if nbytes <= options.largest and 5 * nbytes < device.free():
                table += dropout_cases(device, dtype, nbytes, options.seconds)
        for shape in LOGITS:
            table += r_drop_cases(device, dtype, shape, options.seconds)
    show(table)
    memory = kept(device) if isinstance(device, Torch) else None
    if memory:
        print(f"kept for the backward of {MIB} elements, bytes: {memory}")
    else:
        print("torch was not timed:", "it cannot run in the simulator" if SIMULATED else "it is not installed")
    name = device.name.replace(" ", "-")
    out = options.out or Path(__file__).parent / "results" / f"gpu-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {"gpu": device.name, "fastdrop": fd.__version__, "p": P, "day": time.strftime("%Y-%m-%d")}
    report |= {"kept for the backward": memory, "rows": table}
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"equal to the CPU bit by bit; written to {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
