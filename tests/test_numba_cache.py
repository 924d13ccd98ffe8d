"""Numba's disk cache, which processes and versions share: each finds the kernel it asks for, and no other."""

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd

pytest.importorskip("numba", reason="numba is not installed")
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

from fastdrop.backends.numba_common import rule
from fastdrop.backends.numba_cpu import ops, rows
from fastdrop.dtypes import FLOATS
from fastdrop.operations import OPERATIONS

pytestmark = pytest.mark.slow
DTYPES = list(FLOATS)
CALLS = """
    import sys
    import ml_dtypes
    import numpy as np
    import fastdrop as fd

    x, other = np.random.default_rng(0).standard_normal((2, 6, 8))
    functions = {
        "dropout": lambda a, b: fd.dropout(a, 0.5, rng=0)[0],
        "dropout_add": lambda a, b: fd.dropout_add(a, b, 0.5, rng=0)[0],
        "mean": lambda a, b: fd.multi_sample_mean(a, 0.5, 4, rng=0)[0],
        "sum": lambda a, b: fd.multi_sample_dropout_backward(np.stack([a, b]), fd.mask((2, 6, 8), 0.5, rng=0)),
        "softmax": lambda a, b: fd.softmax_dropout(a, 0.5, rng=0)[0],
        "symmetric_kl": lambda a, b: fd.symmetric_kl(a, b)[1],
    }
    for name, dtype in (call.split(":") for call in sys.argv[1:]):
        a, b = x.astype(dtype), other.astype(dtype)
        results = []
        for backend in "numba", "reference":
            fd.use_backend(backend)
            results.append(functions[name](a, b).astype(np.float64))
        np.testing.assert_allclose(*results, rtol=0.02, atol=0.02, err_msg=f"{name} of {dtype}")
    """
CALLED = [  # of each family of kernels, those whose arguments have the same types
    "dropout:float16", "dropout:bfloat16", "dropout_add:float16",
    "mean:float16", "mean:bfloat16", "sum:float16",
    "softmax:float16", "softmax:bfloat16",
    "symmetric_kl:float16", "symmetric_kl:bfloat16",
]  # fmt: skip


def python(code, *arguments, cache, **environment):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kept(cache):
    return {file: file.stat().st_mtime_ns for file in cache.rglob("*.nbc")}


def test_what_other_processes_compiled_is_found_and_not_mixed_up(tmp_path):
    """Each kernel is the first that its process compiles: by Numba's own count, all are the same number."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda call: python(CALLS, call, cache=tmp_path), CALLED))
    before = kept(tmp_path)
    assert len(before) == len(CALLED)
    python(CALLS, *CALLED, cache=tmp_path)
    python(CALLS, *reversed(CALLED), cache=tmp_path)
    assert kept(tmp_path) == before


def closures(function, found):
    """What compiled code is made of, by the name under which it is compiled."""
    name = function.__module__, function.__qualname__
    contents = [cell.cell_contents for cell in function.__closure__ or ()]
    assert found.setdefault(name, (function.__code__, contents)) == (function.__code__, contents), f"two named {name}"
    for one in contents:
        if hasattr(one, "__code__"):
            closures(one, found)


def test_no_two_kernels_or_parts_of_them_share_a_name():
    kernels = [ops._keep_bytes, ops._keep_bits]
    for dtype in DTYPES:
        kernels += [ops._kernel(dtype, op) for op in OPERATIONS]
        kernels += [ops._samples(dtype, mean) for mean in (True, False)]
        kernels += [rows._losses(dtype), rows._attention(dtype)]
    found = {}
    for kernel in kernels:
        closures(kernel.py_func, found)
    assert len(found) > 2 * len(kernels)


def test_a_closure_without_a_name_of_its_own_is_refused():
    def make(op):
        return lambda x: op(x)

    unnamed = make(abs)
    with pytest.raises(TypeError, match="name of their own, got <function"):
        rule.named(make(unnamed))
    with pytest.raises(TypeError, match=r"name of their own, got \[1\]"):
        rule.named(make([1]))
    named = [rule.named(make(op)) for op in (rule.named(unnamed), max, min, 1, 1.0, np.float32(1), np.float64(1))]
    assert len({function.__qualname__ for function in named}) == len(named)


def test_an_edit_of_any_file_compiles_anew(tmp_path):
    """Numba asks for the time of the kernel's own file alone."""
    package, cache = tmp_path / "fastdrop", tmp_path / "cache"
    shutil.copytree(Path(fd.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    code = """
        import sys
        import numpy as np
        sys.path.insert(0, sys.argv[1])
        import fastdrop as fd
        fd.use_backend("numba")
        assert fd.__file__.startswith(sys.argv[1])
        print(fd.dropout(np.ones(64, np.float32), 0.5, rng=0)[0].max())
        """
    assert python(code, str(tmp_path), cache=cache) == "2.0\n"
    file = package / "backends" / "numba_common" / "rule.py"
    text = file.read_text()
    edited = text.replace("scaled = multiply(value, scale)", "scaled = multiply(value, scale + scale)")
    assert edited != text
    file.write_text(edited)
    assert python(code, str(tmp_path), cache=cache) == "4.0\n"
    file.write_text(text)
    before = kept(cache)
    assert python(code, str(tmp_path), cache=cache) == "2.0\n"
    assert kept(cache) == before


@pytest.mark.parametrize("name", DTYPES)
def test_one_kernel_serves_every_kind_of_array(name):
    """Arrays that cannot be written have a type of their own, and would have a kernel of their own."""
    x, mask = np.ones((4, 6), name), fd.mask((4, 6), 0.5, rng=0)
    frozen = x.copy()
    frozen.flags.writeable = False
    for source in x, frozen, frozen.T, frozen[:, ::-1], x[::2]:
        own = fd.mask(source.shape, 0.5, rng=0)
        ops.apply(np.empty_like(source), source, own)
        ops.apply(np.empty_like(source), source, own.stored())
    ops.apply(x, x, mask)
    assert len(ops._kernel(name, "apply").signatures) == 1
