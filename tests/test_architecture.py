"""Imports go down in the picture of docs/architecture.md, which shows every module and is what its script draws."""

import ast
import importlib.util
import re
from graphlib import TopologicalSorter
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def name_of(path):
    """What a file of the package is called from within: "" for fastdrop itself, "bench.cases"."""
    parts = path.relative_to(ROOT / "fastdrop").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in [*ROOT.glob("fastdrop/**/*.py"), ROOT / "fastdrop/_core.pyx"]}


def tree_of(path):
    text = path.read_text()
    if path.suffix == ".pyx":  # Python's parser does not read Cython; its imports of the package are lines of their own
        text = "\n".join(re.findall(r"^ *(from \.[\w.]* import .+|import fastdrop.*)$", text, re.MULTILINE))
    return ast.parse(text)


def inside(name):
    """A module's name without the package's, or None where it is not the package's."""
    first, _, rest = name.partition(".")
    return rest if first == "fastdrop" else None


def imports(name):
    """What a module imports of the package, inside functions too, but for types: (module, by import_module?)."""
    tree = tree_of(FILES[name])
    package = name if FILES[name].stem == "__init__" else name.rpartition(".")[0]
    folders = ["fastdrop", *package.split(".")] if package else ["fastdrop"]
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    ignored = {inner for node in for_types for part in node.body for inner in ast.walk(part)}
    for node in set(ast.walk(tree)) - ignored:
        if isinstance(node, ast.Import):
            yield from ((inside(alias.name), False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) - node.level + 1] if node.level else []
            module = inside(".".join([*above, *filter(None, [node.module])]))
            for alias in node.names:  # a module of the folder, or a name in the module
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in FILES else module, False
        elif isinstance(node, ast.Call) and ast.unparse(node).startswith("importlib.import_module('"):
            yield inside(node.args[0].value), True


BY_NAME = {(name, other) for name in FILES for other, by_name in imports(name) if by_name and other is not None}
IMPORTS = {name: {other for other, by_name in imports(name) if not by_name} - {name, None} for name in FILES}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_architecture", DOCS / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def height():
    """The place of each box in the file that was drawn, from the top, by module or file."""
    boxes = ElementTree.parse(DOCS / "architecture.svg").iter(f"{SVG}g")
    return {g.get("id"): int(g.find(f"{SVG}rect").get("y")) for g in boxes if g.get("class") != "seat"}


def box_of(name, height):
    """The box that shows a module: its own, or its folder's."""
    name = name or "__init__"
    while name not in height:
        name = name.rpartition(".")[0]
        assert name, "a module has no box: its layer is missing in pyproject.toml"
    return name


def test_the_picture_is_what_the_script_draws(script):
    assert (DOCS / "architecture.svg").read_text() == script.picture(), "run python docs/draw_architecture.py"


def test_the_picture_shows_every_module_and_nothing_else(height):
    shown = {box_of(name, height) for name in FILES} | {"src"}
    compiled = {path.relative_to(ROOT / "src").as_posix() for path in ROOT.glob("src/**/*.c")}
    assert compiled <= set(height)
    assert all((ROOT / "src" / name).is_file() for name in set(height) - shown)


def test_imports_were_read():
    assert {"dispatch", "masks", "rng"} <= IMPORTS["functional"]
    assert {"fused", "layers"} <= IMPORTS[""]
    assert IMPORTS["_core"] == {"rng"}
    assert "backends.numba_cuda" in IMPORTS["borders.cuda"]  # inside a function


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down(name, height):
    own = box_of(name, height)
    for other in IMPORTS[name]:
        theirs = box_of(other, height)
        beside = own.partition(".")[0] == theirs.partition(".")[0] == "borders"  # one folder, one row
        assert own == theirs or height[theirs] > height[own] or beside, (
            f"{name} imports {other}, which is drawn above it"
        )


def test_what_is_called_by_name_is_told(height):
    upward = {(a, b) for a, b in BY_NAME if height[box_of(a, height)] >= height[box_of(b, height)]}
    assert upward == {("dispatch", "cuda")}
    assert "`import_module`" in (DOCS / "architecture.md").read_text()


def test_there_is_no_circle():
    list(TopologicalSorter(IMPORTS).static_order())  # else CycleError


def test_the_page_tells_each_step_of_the_way(script):
    steps = re.findall(r"^(\d+)\. `([^`]+)`", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert steps == [(str(i), step) for i, step in enumerate(script.WAY, 1)]


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/adding-an-operation.md", "CONTRIBUTING.md"])
def test_every_path_on_a_page_is_there(page):
    paths = re.findall(r"`((?:fastdrop|src|tests|docs|bench|examples|\.ci)/[\w./-]*)`", (ROOT / page).read_text())
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
