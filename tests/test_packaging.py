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
    for part in (
        "reference backend",
        "(import of fastdrop._core halted",
        "install a C compiler",
        "or pip install numba",
        "fastdrop-kernels",
    ):
        assert part in said


@pytest.mark.slow
def test_without_extension_numba_comes_first():
    pytest.importorskip("numba")
    found = report("fastdrop._core")
    assert found["backend"] == "numba"
    assert found["bits"] == "0c19c5322905b53c"
    (said,) = found["said"]
    assert "numba backend" in said
    assert "pip install numba" not in said


def test_import_brings_numpy_alone():
    found = report()
    if found["backend"] != "native":
        pytest.skip("no compiled extension")
    assert found["said"] == []
    assert "numpy" in found["modules"]
    heavy = {"dask", "jax", "keras", "matplotlib", "numba", "numba_cuda", "scipy", "sklearn", "torch", "tqdm"}
    assert not heavy & set(found["modules"])


def test_every_package_is_named():
    listed = re.search(
        r"^packages = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    ).group(1)
    there = [".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "fastdrop").rglob("__init__.py")]
    assert re.findall(r'"([^"]+)"', listed) == sorted(there)


def test_nobody_is_told_to_install_the_other_program():
    """PyPI's fastdrop is a file-sharing server."""
    files = [ROOT / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "setup.py", ".ci/run")]
    files += [path for name in ("fastdrop", "docs", "examples", "bench", "tests") for path in (ROOT / name).rglob("*")]
    other = (
        r"(?m)pip3? install\b[^\n]*(?<![\w./])fastdrop(?![-\w./])|fastdrop\[\w|fastdrop again|^name = .fastdrop['\"]"
    )
    texts = [path for path in files if path.suffix in (".py", ".md", ".toml", ".pyx", "") and path.is_file()]
    texts.remove(Path(__file__))
    assert len(texts) > 50
    found = [(path.name, text) for path in texts for text in re.findall(other, path.read_text("utf-8"))]
    assert found == []


def test_the_other_program_beside_this_one_is_named(tmp_path, fresh_python):
    """An install of either writes over files of the other."""
    (tmp_path / "fastdrop").symlink_to(ROOT / "fastdrop", target_is_directory=True)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastdrop; print(fastdrop.__file__)"
    for name, warned in (("fastdrop_kernels-0.1.0.dist-info", False), ("fastdrop-1.2.dist-info", True)):
        (tmp_path / name).mkdir()
        done = fresh_python(code)
        assert done.stdout.startswith(str(tmp_path)), done.stderr
        assert ("RuntimeWarning" in done.stderr) == warned
    for words in ("fastdrop-1.2.dist-info", str(tmp_path), "pip uninstall fastdrop fastdrop-kernels"):
        assert words in done.stderr


def test_the_other_program_in_place_of_this_ones_init_is_named(tmp_path, fresh_python):
    """Its install replaces the file, its uninstall takes it; modules beside it can be imported all the same."""
    (tmp_path / "fastdrop").mkdir()
    for path in (ROOT / "fastdrop").iterdir():
        if path.name != "__init__.py":
            (tmp_path / "fastdrop" / path.name).symlink_to(path)
    code = f"""
import sys
sys.path[:] = [{str(tmp_path)!r}, *(path for path in sys.path if path and path != {str(ROOT)!r})]
import numpy
from fastdrop.layers import Dropout
try:
    Dropout(0.5)(numpy.ones(3))
except ImportError as error:
    print(error)
"""
    for text in (None, "__version__ = '0.1.0'\n"):
        if text is not None:
            (tmp_path / "fastdrop" / "__init__.py").write_text(text)
        done = fresh_python(code)
        assert "distribution fastdrop, another program" in done.stdout, done.stderr
        assert "pip uninstall fastdrop fastdrop-kernels" in done.stdout


def test_one_version():
    assert importlib.metadata.version("fastdrop-kernels") == fd.__version__
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE).group(1)
    assert newest == fd.__version__
