"""The C files by themselves, in a program without Python (tests/kernels/check.c): NEON under an emulator, an x86
processor older than AVX2, another compiler, and the sanitizers.

Each build checks every instruction set it finds against the answer file and the rule, and says which they were.
"""

import json
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SRC = HERE.parent / "src"
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SRC}"]
X86 = platform.machine() in ("x86_64", "AMD64")

pytestmark = pytest.mark.skipif(not SRC.is_dir(), reason="the C files are not here: not a checkout")

# name: compiler and its flags, what runs the program, the instruction sets it must find (None: those of this machine)
BUILDS = {
    "sanitizers": (["gcc", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], [], None),
    "clang": (["clang", "-O2"], [], None),
    "NEON by gcc": (["aarch64-linux-gnu-gcc", "-O1", "-static"], ["qemu-aarch64"], ["neon", "scalar"]),
    "NEON by clang": (
        ["clang", "-O1", "-static", "--target=aarch64-linux-gnu"],
        ["qemu-aarch64"],
        ["neon", "scalar"],
    ),
}
NEEDS = {"NEON by clang": ["aarch64-linux-gnu-gcc"]}  # clang has no C library of its own for it


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The answer file as lines of text, which C reads more easily."""
    masks = json.loads((HERE / "data" / "stream-v1.json").read_text())["masks"]
    path = tmp_path_factory.mktemp("answers") / "masks.txt"
    fields = ("seed", "stream", "offset", "n")
    lines = [" ".join([*(str(m[f]) for f in fields), float(m["p"]).hex(), m["bits"]]) for m in masks]
    path.write_text("\n".join(lines) + "\n")
    return path


def build(folder, command):
    """Compile all C files and the checking program, as many at a time as there are processors."""
    sources = [HERE / "kernels" / "check.c", *sorted(SRC.glob("**/*.c"))]

    def compiled(source):
        target = folder / f"{source.stem}.o"
        done = subprocess.run([*command, *FLAGS, "-c", source, "-o", target], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*command, *objects, "-o", folder / "check", "-lm"], check=True)
    return folder / "check"


def check(command, answers, cases):
    done = subprocess.run([*command, answers, str(cases)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.split()


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("name", BUILDS)
def test_build(tmp_path, answers, isas, name):
    compiler, runner, found = BUILDS[name]
    need(compiler[0], *runner, *NEEDS.get(name, []))
    program = build(tmp_path, compiler)
    assert check([*runner, program], answers, 400) == (found or isas)


def test_processor_without_avx2(tmp_path, answers):
    """The dispatch must not choose what is not there, nor may a compiler flag let an instruction of it slip in."""
    if not X86:
        pytest.skip("this CPU is not an x86")
    need("gcc", "qemu-x86_64")
    program = build(tmp_path, ["gcc", "-O1", "-static"])
    assert check(["qemu-x86_64", "-cpu", "Nehalem", program], answers, 100) == ["scalar"]


def test_check_fails_on_a_wrong_answer(tmp_path, answers):
    """The checking program itself: one wrong bit in the answers, and it says so."""
    need("gcc")
    program = build(tmp_path, ["gcc", "-O0"])
    text = answers.read_text().rstrip()
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(text[:-1] + f"{int(text[-1], 16) ^ 1:x}\n")
    done = subprocess.run([program, wrong, "0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "of the answer" in done.stderr
