"""What type checkers see of the installed package: `python .ci/check_types.py`, with pyright, mypy and it installed.

The names that users may use have known types; the extension is as its stub says; documented uses raise no false alarm,
and of the mistakes every line that is marked is found, no other.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGES = Path(__file__).parent.parent / "tests" / "typing"
SURFACE = re.compile(
    r"fastdrop\.(\w+|cuda\.\w+|numba\.(?!error)\w+|(layers|typing)\..*|(masks\.Mask|rng\.Rng|inference\.(Sample|MonteCarlo)"
    r"|losses\.RDrop)\b.*)"
)
CYTHONS = ".*__(reduce_cython|setstate_cython|test)__\n"  # names that Cython adds
FEWEST = 60  # mistakes
PAGE_NAMES = ("uses.py", "mistakes.py")


def output(*command):
    """What a checker prints that runs where no source of the package lies: it sees what is installed."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))  # pyright asks the first python there
    environment = {**os.environ, "PATH": path}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=PAGES, env=environment)
    return done.stdout + done.stderr


def unknown_names():
    report = output("pyright", "--outputjson", "--ignoreexternal", "--verifytypes", "fastdrop")
    symbols = [
        symbol
        for symbol in json.loads(report)["typeCompleteness"]["symbols"]
        if symbol["isExported"] and SURFACE.fullmatch(symbol["name"])
    ]
    assert len(symbols) > 200, report
    unknown = [symbol["name"] for symbol in symbols if not symbol["isTypeKnown"]]
    return [f"the type of {name} is not wholly known" for name in unknown], f"{len(symbols)} names of the surface"


def faults_of_stub():
    with tempfile.NamedTemporaryFile("w") as allowed:
        allowed.write(CYTHONS)
        allowed.flush()
        said = output("mypy.stubtest", "--allowlist", allowed.name, "fastdrop._core")
    return [] if said.startswith("Success") else said.splitlines(), "the extension's stub"


def by_pyright():
    """(page, line) -> message, for each error."""
    report = json.loads(output("pyright", "--outputjson", *PAGE_NAMES))
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["message"].partition("\n")[0]
        for one in report["generalDiagnostics"]
    }


def by_mypy():
    said = output("mypy", "--strict", "--follow-imports=silent", f"--cache-dir={os.devnull}", *PAGE_NAMES)
    found = re.findall(r"(?m)^(\w+\.py):(\d+): error: (.*)", said)
    assert found, said
    return {(page, int(line)): message for page, line, message in found}


def faults_of_pages():
    marked = {}
    for number, line in enumerate((PAGES / "mistakes.py").read_text("utf-8").splitlines(), 1):
        if mark := re.search(r"  # mistake(: pyright)?$", line):
            marked[number] = mark
    assert len(marked) >= FEWEST
    faults = []
    for tool, found in (("pyright", by_pyright()), ("mypy", by_mypy())):
        wanted = {("mistakes.py", number) for number, mark in marked.items() if tool == "pyright" or not mark[1]}
        faults += [f"{page}:{line}: {tool} finds no mistake" for page, line in sorted(wanted - found.keys())]
        faults += [f"{page}:{line}: {tool}: {found[page, line]}" for page, line in sorted(found.keys() - wanted)]
    return faults, f"{len(marked)} mistakes"


def main():
    faults = []
    for check in (unknown_names, faults_of_stub, faults_of_pages):
        found, said = check()
        print(f"{said}: {len(found)} faults")
        faults += found
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
