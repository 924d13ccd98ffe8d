"""The extension module: its sources, warnings and OpenMP; nothing else (metadata is in pyproject.toml).

Where no C compiler works the extension is left out and the package still installs: `optional` makes setuptools go on,
and `fastdrop` says at import which slower backend it runs on.  That would hide a broken build as well, so with
FASTDROP_STRICT=1 in the environment every failure, and every compiler warning, is an error.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

STRICT = os.environ.get("FASTDROP_STRICT") == "1"


class BuildExt(build_ext):
    """Adds OpenMP where the compiler has it; plain C gives the same results on one thread."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            flags, links = ["/O2", "/std:c11", "/openmp"], []
        else:
            openmp = ["-fopenmp"] if self._takes("-fopenmp") else []
            flags, links = ["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", *openmp], [*openmp, "-lm"]
            if STRICT:  # the C that Cython writes has unused parameters
                flags += ["-Werror", "-Wall", "-Wextra", "-Wno-unused-parameter"]
        for extension in self.extensions:
            extension.extra_compile_args, extension.extra_link_args = flags, links
        super().build_extensions()

    def _takes(self, flag):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=[flag])
            except (CompileError, LinkError):
                return False
        return True


source = Extension(
    "fastdrop._core",
    ["fastdrop/_core.pyx", *sorted(map(str, Path("src").glob("**/*.c")))],
    include_dirs=["src", np.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    depends=[str(path) for path in Path("src").glob("**/*") if path.suffix in (".h", ".inc")],
)
(core,) = cythonize([source])
core.optional = not STRICT  # set here: cythonize makes a new Extension and forgets it

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
