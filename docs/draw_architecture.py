"""Draws docs/architecture.svg, the layers and what lies in each: ``python docs/draw_architecture.py``.

The Python part is read from the import contract in pyproject.toml, whose comments name the layers; here stand only the
C files, which no contract lists, the seats of what is yet to come, and the way of one call.  Plain SVG on a white
ground of its own: legible on a dark page, and the same bytes on every machine, so that a test can compare.
"""

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the jobs that _core fills in down to the rule: what a row is, its files in src/.
C_ROWS = [
    ("jobs on arrays", ["run.c", "rows.c", "samples.c", "buffer_pool.c"]),
    ("axes to runs of elements", ["plan.c"]),
    ("what a mask says of a run", ["bits.c"]),
    ("choice of a table; threads", ["dispatch.c", "threads.c"]),
    ("one table of kernels each", ["isa/avx512.c", "isa/avx2.c", "isa/neon.c", "isa/scalar.c"]),
    ("kernels' bodies", ["kernels.inc", "rows.inc", "samples.inc", "rows_exact.c"]),
    ("the rule; lists", ["stream.h", "ops.def", "losses.def", "ops.c"]),
]
# Where something new goes: beside which box.
SEATS = {
    "layers": "an adapter",
    "fused": "an operation",
    "borders": "a device",
    "backends.native": "a backend",
    "isa/scalar.c": "an instruction set",
}
# The steps of a call, as docs/architecture.md tells them.
WAY = ["dispatch", "borders.host", "functional", "masks", "backends.native", "_core", "run.c", "bits.c", "isa/avx512.c"]

WIDTH, MARGIN, LEFT, ROW, BOX = 960, 16, 262, 32, 24
STYLE = """
text { font: 12px 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #1f2328 }
text.name { font: 13px 'DejaVu Sans', Helvetica, Arial, sans-serif; fill: #424a53 }
text.step { font-size: 10px; font-weight: bold; fill: #fff; text-anchor: middle }
.ground { fill: #fff; stroke: #afb8c1 }
.python rect { fill: #ddf4ff; stroke: #54aeff }
.c rect { fill: #fff1e5; stroke: #fb8f44 }
.folder rect { fill: #f6f8fa; stroke: #afb8c1 }
.seat rect { fill: #fff; stroke: #6e7781; stroke-dasharray: 4 3 }
.arrow { stroke: #57606a; fill: none; stroke-width: 1.5 }
circle { fill: #a40e26 }
"""


def layers(contract):
    """Rows of a contract in pyproject.toml, top first: (what the layer is, the modules in it)."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(rf'name = "{contract}".*?^layers = \[(.*?)\]$', text, re.DOTALL | re.MULTILINE)[1]
    return [(name, modules.split(" | ")) for modules, name in re.findall(r'"([^"]+)",?(?:  # (.+))?', block)]


def rows():
    """Every row of the picture: (what it is, its boxes by their full names, the folder they are drawn in)."""
    folders = {path.parent.name for path in ROOT.glob("fastdrop/*/__init__.py")}
    for name, modules in layers("Modules import downward only"):
        if "layers" in modules:  # the contract has no line for the package itself
            yield "public names", ["__init__"], ""
        if modules == ["borders"]:
            yield name, ["borders.host", "borders.cuda"], "borders/"
        elif modules == ["backends"]:
            for i, (_, inner) in enumerate(layers("Backends import downward only")):
                yield "" if i else name, [f"backends.{module}" for module in inner], "backends/"
        else:
            modules = [module + "/" if module in folders else module for module in modules]
            yield name, modules, ""
        if modules == ["compiled"]:  # no Python file, so no line of the contract
            yield "from arrays to C's jobs", ["_core"], ""
    for name, files in C_ROWS:
        yield name, files, "src/"


def box(x, y, full_name, kind):
    """A box with its last name, its step on the way, and the x where the next may begin."""
    label = full_name.rpartition(".")[2] if kind == "python" else full_name
    width = round(7.23 * len(label)) + 16
    drawn = [
        f'<g class="{kind}" id="{escape(full_name.rstrip("/"))}">'
        f'<rect x="{x}" y="{y}" width="{width}" height="{BOX}" rx="4"/>'
        f'<text x="{x + 8}" y="{y + 16}">{escape(label)}</text></g>'
    ]
    if full_name in WAY:
        step = WAY.index(full_name) + 1
        drawn.append(f'<circle cx="{x + width}" cy="{y}" r="8"/>')
        drawn.append(f'<text class="step" x="{x + width}" y="{y + 3.5}">{step}</text>')
    return drawn, x + width + 12


def picture():
    """The text of the SVG file."""
    everything = list(rows())
    drawn, y, top, previous = [], MARGIN, {}, ""
    for name, boxes, folder in everything:
        if folder != previous and (folder or previous):
            y += 10
        previous = folder
        if folder:
            top.setdefault(folder, y)
        drawn.append(f'<text class="name" x="{MARGIN + 26}" y="{y + 16}">{escape(name)}</text>')
        x = LEFT + 74 if folder else LEFT
        for full_name in boxes:
            parts, x = box(x, y, full_name, "c" if folder == "src/" else "python")
            drawn += parts
        for beside, seat in SEATS.items():
            if beside in boxes or (beside + "/" == folder):
                drawn += box(x, y, f"+ {seat}", "seat")[0]
        y += ROW
    bottom = y
    frames = []
    for folder, start in top.items():
        high = sum(f == folder for _, _, f in everything) * ROW
        frames.append(
            f'<g class="folder" id="{folder[:-1]}">'
            f'<rect x="{LEFT - 8}" y="{start - 8}" width="{WIDTH - LEFT - 8}" height="{high + 8}" rx="6"/>'
            f'<text x="{LEFT + 4}" y="{start + 16}">{folder}</text></g>'
        )
    x = MARGIN + 8
    arrow = f'<path class="arrow" d="M{x} {MARGIN + 4} V{bottom - 8} m-5 -8 l5 8 l5 -8"/>'
    legend = "Arrow: imports go down only. Numbers: the way of a call of fd.dropout. Dashed: where something new goes."
    drawn.append(f'<text class="name" x="{MARGIN}" y="{bottom + 20}">{legend}</text>')
    height = bottom + 20 + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
            "<title>The layers of fastdrop</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            *frames,
            arrow,
            *drawn,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    (ROOT / "docs/architecture.svg").write_text(picture())
