"""A copy of the checkout whose extension is built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys

CHECKS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1"


def sanitized(root, scratch):
    """Build it in the folder ``scratch``; return the copy's root, and the environment that its users need."""
    copy, compiler = scratch / "checkout", scratch / "gcc"
    leave_out = shutil.ignore_patterns("*.so", "build", ".git", ".venv*", "__pycache__", "*.egg-info", "docs")
    shutil.copytree(root, copy, ignore=leave_out)
    compiler.write_text(f'#!/bin/sh\nexec gcc "$@" {CHECKS}\n')  # in the last place, after setup.py's own -O3
    compiler.chmod(0o700)
    environment = {**os.environ, "CC": str(compiler), "FASTDROP_STRICT": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", f"-j{len(os.sched_getaffinity(0))}"]
    subprocess.run(command, cwd=copy, env=environment, check=True)
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return copy, {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # every object's memory is watched, a bytearray's too
        "PYTHONFAULTHANDLER": "0",
    }
