"""The extension modules: sources and OpenMP, nothing else (metadata is in pyproject.toml).

Where no C compiler works the extension is left out and the package still installs: `optional=True` makes setuptools go on,
and `fastdrop` says at import which slower backend it runs on.
"""

import os
import sys
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["src/walk.c", "src/dispatch.c", *sorted(str(path) for path in Path("src/isa").glob("*.c"))]
HEADERS = [str(path) for pattern in ("*.h", "*.inc", "isa/*.h") for path in Path("src").glob(pattern)]
STRICT = ["-Werror", "-Wall", "-Wextra"] if os.environ.get("FASTDROP_STRICT") else []  # for CI


class BuildExt(build_ext):
    """Adds OpenMP where the compiler has it; plain C gives the same results on one thread."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            flags, links = ["/O2", "/std:c11", "/openmp"], []
        else:
            openmp = ["-fopenmp"] if self._takes("-fopenmp") else []
            # Cython's own C is not clean under -Wextra: unused parameters
            flags = ["-std=gnu11", "-O3", "-ffp-contract=off", *openmp, *STRICT, *["-Wno-unused-parameter"] * bool(STRICT)]
            links = [*openmp, "-lm"]
        for extension in self.extensions:
            extension.extra_compile_args = flags
            extension.extra_link_args = links
        super().build_extensions()

    def _takes(self, flag):
        import tempfile

        from setuptools.errors import CompileError, LinkError

        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=[flag])
            except (CompileError, LinkError):
                return False
        return True


core = Extension(
    "fastdrop._core",
    ["fastdrop/_core.pyx", *SOURCES],
    include_dirs=["src", np.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    depends=HEADERS,
    optional=sys.platform != "emscripten" and not STRICT,
)

setup(ext_modules=cythonize([core]), cmdclass={"build_ext": BuildExt})
