"""The extension module: its sources and warnings; nothing else (metadata is in pyproject.toml).

Where no C compiler works the extension is left out and the package still installs: `optional` makes setuptools go on,
and `fastdrop` says at import which slower backend it runs on.  That would hide a broken build as well, so with
FASTDROP_STRICT=1 in the environment every failure, and every compiler warning, is an error.

What a build makes, Cython's C file included, goes under build/, or out of the tree where that cannot be written.
"""

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext  # Cython's, where a .pyx is concerned

STRICT = os.environ.get("FASTDROP_STRICT") == "1"


class BuildExt(build_ext):
    """The flags, and sources side by side."""

    def build_extensions(self):
        flags, links = ["-std=gnu11", "-O3", "-ffp-contract=off", "-pthread"], ["-pthread", "-lm"]
        if not self.debug:
            flags += ["-g0"]
            links += ["-s"] if sys.platform == "linux" else []
        if STRICT:  # the C that Cython writes has unused parameters
            flags += ["-Werror", "-Wall", "-Wextra", "-Wno-unused-parameter"]
        self._compile_side_by_side()
        for extension in self.extensions:
            extension.extra_compile_args, extension.extra_link_args = flags, links
        super().build_extensions()

    def _compile_side_by_side(self):
        """Several sources at a time, where setuptools' own --parallel means several extensions."""
        compile_some, jobs = self.compiler.compile, self.parallel or os.cpu_count()

        def compile_all(sources, **options):
            with ThreadPoolExecutor(jobs) as pool:  # from the end: the instruction sets take longest
                done = list(pool.map(lambda source: compile_some([source], **options), reversed(sources)))
            return [name for names in reversed(done) for name in names]

        self.compiler.compile = compile_all


extension = Extension(
    "fastdrop._core",
    ["fastdrop/_core.pyx", *sorted(map(str, Path("src").glob("**/*.c")))],
    include_dirs=["src", np.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    depends=[str(path) for path in Path("src").glob("**/*") if path.suffix in (".h", ".inc", ".def")],
    optional=not STRICT,
)
extension.cython_c_in_temp = True  # asked for here: an editable install forgets the command's option
options = {}
if not os.access(".", os.W_OK):
    elsewhere = tempfile.TemporaryDirectory()  # until this process ends
    options = {"build": {"build_base": elsewhere.name}, "egg_info": {"egg_base": elsewhere.name}}

setup(ext_modules=[extension], cmdclass={"build_ext": BuildExt}, options=options)
