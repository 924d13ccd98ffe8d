"""What an installed fastdrop is: all of its packages, light to import, and of use without its compiled extension.

That a wheel can be built, and installed where no C compiler works, needs the network: it is tried in ``.ci/run``.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastdrop as fd

ROOT = Path(__file__).parent.parent

REPORT = """
import json, sys, warnings
for name in sys.argv[1:]:
    sys.modules[name] = None  # its import fails
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import fastdrop as fd, fastdrop.layers
print(json.dumps({
    "backend": fd.get_backend(),
    "said": [str(warning.message) for warning in said],
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "bits": fd.mask(64, 0.5, rng=0).bits().tobytes().hex(),
}))
"""


def report(*missing):
    """What a new process finds that imports fastdrop where the modules ``missing`` cannot be."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTDROP_")}
    command = [sys.executable, "-c", REPORT, *missing]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_without_extension_the_reference_runs_and_says_so_once():
    found = report("fastdrop._core", "numba")
    assert found["backend"] == "reference"
    assert found["bits"] == "0c19c5322905b53c"  # of stream version 1
    (said,) = found["said"]
    for part in ("reference backend", "(import of fastdrop._core halted", "install a C compiler", "or install numba"):
        assert part in said


def test_without_extension_numba_comes_first():
    pytest.importorskip("numba")
    found = report("fastdrop._core")
    assert found["backend"] == "numba"
    assert found["bits"] == "0c19c5322905b53c"
    (said,) = found["said"]
    assert "numba backend" in said
    assert "or install numba" not in said


def test_import_brings_numpy_alone():
    found = report()
    if found["backend"] != "native":
        pytest.skip("no compiled extension")
    assert found["said"] == []
    assert "numpy" in found["modules"]
    heavy = {"dask", "jax", "keras", "matplotlib", "numba", "numba_cuda", "scipy", "sklearn", "torch", "tqdm"}
    assert not heavy & set(found["modules"])


def test_every_package_is_named():
    listed = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE).group(1)
    there = [".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "fastdrop").rglob("__init__.py")]
    assert re.findall(r'"([^"]+)"', listed) == sorted(there)


def test_one_version():
    assert importlib.metadata.version("fastdrop") == fd.__version__
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE).group(1)
    assert newest == fd.__version__
