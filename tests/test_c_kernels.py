"""The C files by themselves, in a program without Python (tests/kernels): NEON under an emulator, an x86
processor older than AVX2, another compiler, and the sanitizers.

Each build checks every instruction set it finds against the answer file, the rule and plain formulas, and says which
they were.
"""

import functools
import json
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SRC = HERE.parent / "src"
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SRC}"]
X86 = platform.machine() in ("x86_64", "AMD64")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SRC.is_dir(), reason="the C files are not here: not a checkout")]

# name: compiler and its flags, what runs the program, how many random cases (40 are every operation on every dtype)
BUILDS = {
    "sanitizers": (["gcc", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], [], 120),
    "NEON by gcc": (["aarch64-linux-gnu-gcc", "-O3", "-static"], ["qemu-aarch64"], 44),  # as setup.py has it
    "NEON by clang": (["clang", "-O1", "-static", "--target=aarch64-linux-gnu"], ["qemu-aarch64"], 160),
    "clang": (["clang", "-O2", "-static"], [], 600),  # last: the tests below use it too
}


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The answer file as lines of text, which C reads more easily."""
    masks = json.loads((HERE / "data" / "stream-v1.json").read_text())["masks"]
    path = tmp_path_factory.mktemp("answers") / "masks.txt"
    fields = ("seed", "stream", "offset", "n")
    lines = [" ".join([*(str(m[f]) for f in fields), float(m["p"]).hex(), m["bits"]]) for m in masks]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Function from a build's name to its program: all C files and those that check them, compiled once."""

    @functools.cache
    def build(name):
        folder = tmp_path_factory.mktemp("build")
        command = BUILDS[name][0]

        def compiled(source):
            target = folder / f"{source.stem}.o"
            done = subprocess.run([*command, *FLAGS, "-c", source, "-o", target], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, [*(HERE / "kernels").glob("*.c"), *SRC.glob("**/*.c")]))
        subprocess.run([*command, *objects, "-o", folder / "check", "-lm"], check=True)
        return folder / "check"

    return build


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", BUILDS)
def test_build(program, answers, isas, name):
    compiler, runner, cases = BUILDS[name]
    need(compiler[0], *runner)
    if "--target=aarch64-linux-gnu" in compiler:
        need("aarch64-linux-gnu-gcc")  # clang has no C library of its own for it
    done = run(*runner, program(name), answers, cases)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == (["neon", "scalar"] if runner else isas)


def test_processor_without_avx2(program, answers):
    """The dispatch must not choose what is not there, nor a compiler let an instruction of it slip in."""
    if not X86:
        pytest.skip("this CPU is not an x86")
    need("clang", "qemu-x86_64")
    done = run("qemu-x86_64", "-cpu", "Nehalem", program("clang"), answers, 100)
    assert (done.stdout.split(), done.returncode) == (["scalar"], 0), done.stderr


def test_check_fails_on_a_wrong_answer(tmp_path, program, answers):
    """The checking program itself: one wrong bit in the answers, and it says so."""
    need("clang")
    text = answers.read_text().rstrip()
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(text[:-1] + f"{int(text[-1], 16) ^ 1:x}\n")
    done = run(program("clang"), wrong, 0)
    assert done.returncode == 1
    assert "of the answer" in done.stderr
