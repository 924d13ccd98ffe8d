"""The table and the picture that ``fastdrop bench`` makes of its rows."""

import math
import textwrap
from dataclasses import replace

from .worker import Job

COLOURS = ["#1f77b4", "#17becf", "#2ca02c", "#ee4c2c", "#9467bd", "#8c564b", "#e3a008", "#bcbd22"]  # rivals, in order
LABEL_GAP = 0.028  # of a panel's height


def figure(value, unit):
    """A number as the table shows it: three digits say all that such a measurement knows."""
    text = f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return text if unit == "x" else f"{text} {unit}"


def results(checks, rows, counts):
    """What the rows say about each check.

    Parameters
    ----------
    checks : list of `targets.Check`
    rows : dict of (Job, int) to dict
        Rows by job and thread count.
    counts : dict of str to int
        "one" and "all": the thread counts.

    Returns
    -------
    list of dict
        number, what, target, values, limits, skipped (these three by "one" and "all"), met (None: not judged or
        nothing measured).
    """
    out = []
    for check in checks:
        values, limits, skipped = {}, {}, {}
        for which, threads in counts.items():
            if which not in check.threads:
                continue
            mine = [rows[job, threads] for job in check.jobs]
            reasons = [row["skipped"] for row in mine if "skipped" in row]
            if reasons:
                skipped[which] = reasons[0]
            else:
                values[which] = check.value(mine)
                if check.limit:
                    limits[which] = check.limit(mine)
        judged = {} if check.goal is None else {which: check.met(value) for which, value in values.items()}
        out.append(
            {
                "number": check.number,
                "what": check.what,
                "target": "" if check.goal is None else f"{check.sense} {check.goal:g}",
                "unit": check.unit,
                "values": values,
                "limits": limits,
                "skipped": skipped,
                "met": judged or None,
            }
        )
    return out


def verdict(met):
    """One word for the table: yes, no, or for which thread count only."""
    if not met:
        return ""
    if len(set(met.values())) == 1:
        return "yes" if all(met.values()) else "no"
    return f"{next(which for which, ok in met.items() if ok)} only"


def table(found, counts):
    """The results as a Markdown table, aligned to be read as it is, and the reasons for what is missing below it."""
    titles = {"one": "one thread", "all": f"{counts.get('all')} threads"}
    lines = [["#", "what", "target", *(titles[which] for which in counts), "met"]]
    reasons = {}
    last = None
    for result in found:
        cells = []
        for which in counts:
            if which in result["values"]:
                limit = result["limits"].get(which)
                of = "" if limit is None else f" of {figure(limit, 'x')}"
                cells.append(figure(result["values"][which], result["unit"]) + of)
            elif which in result["skipped"]:
                note = reasons.setdefault(result["skipped"][which], len(reasons) + 1)
                cells.append(f"skipped ({note})")
            else:
                cells.append("")
        number = "" if result["number"] == last else result["number"]
        last = result["number"]
        lines.append([number, result["what"], result["target"], *cells, verdict(result["met"])])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    right = [k >= 2 and k < len(widths) - 1 for k in range(len(widths))]
    text = []
    for line in lines:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        text.append(f"| {' | '.join(cells)} |")
    text.insert(
        1, "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    )
    if any(result["limits"] for result in found):
        text += ["", '"of": what it would be if fastdrop took as long as np.copyto of the same bytes in the same run.']
    for reason, note in reasons.items():
        text += ["", *textwrap.wrap(f"({note}) skipped: {reason}", 120)]
    return "\n".join(text)


def copies(rows, threads):
    """How far np.copyto of 64 MiB differed between processes: the noise in ratios of two processes."""
    job = Job("dropout", (1 << 24,))
    times = sorted(
        (row["yardsticks"]["copy"] * 1e3, row["library"])
        for (other, count), row in rows.items()
        if count == threads and replace(other, library="fastdrop") == job and "skipped" not in row
    )
    if len(times) < 2:
        return ""
    return (
        f"np.copyto of 64 MiB took {times[0][0]:.2f} ms ({times[0][1]}) to {times[-1][0]:.2f} ms ({times[-1][1]}) "
        f"in {len(times)} processes with {threads} thread{'s' * (threads > 1)}"
    )


def spaced(heights, gap):
    """Move heights of labels until neighbours are ``gap`` apart, each group about its middle (isotonic regression)."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    groups = []  # [sum of (height - rank * gap), members]
    for rank, k in enumerate(order):
        groups.append([heights[k] - rank * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + members]
    middles = [total / members for total, members in groups for _ in range(members)]
    placed = list(heights)
    for rank, k in enumerate(order):
        placed[k] = middles[rank] + rank * gap
    return placed


def label(panel, ends, colours):
    """Write each line's name to the right of its end."""
    low, high = panel.get_xlim()
    panel.set_xticks([10**k for k in range(2, 12) if low < 10**k < high])
    panel.tick_params(which="minor", bottom=False)
    panel.set_xlim(low, high * (high / low) ** 0.42)
    bottom, top = panel.get_ylim()
    heights = spaced([math.log10(y) for _, y in ends.values()], LABEL_GAP * math.log10(top / bottom))
    for (name, end), height in zip(ends.items(), heights, strict=True):
        thread = {"arrowstyle": "-", "color": colours[name], "alpha": 0.35, "lw": 0.8}
        at = high * 1.15, 10**height
        panel.annotate(name, end, at, va="center", fontsize=9.5, color=colours[name], arrowprops=thread)


def picture(curves, rows, counts, machine, path):
    """Draw time an element against size, a panel for each thread count.

    Parameters
    ----------
    curves : dict of str to tuple of Job
    rows, counts
        As in `results`.
    machine : str
        Said below the title.
    path : str
        Of the PNG.
    """
    from matplotlib.figure import Figure

    colours = iter(COLOURS)
    chart = Figure(figsize=(7.2 * len(counts), 6.4), layout="constrained")
    axes = chart.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    style = {"copy (np.copyto)": {"color": "black", "lw": 2.2, "ls": ":", "zorder": 3}}
    for name in curves:
        if name.startswith("fastdrop"):
            style[name] = {"color": "#c2185b", "lw": 2.8, "ls": "-" if "out=" in name else "--", "zorder": 4}
        else:
            style[name] = {"color": next(colours), "lw": 1.6}
    ends = []
    for panel, threads in zip(axes, counts.values(), strict=True):
        points = {name: [] for name in style}
        for name, jobs in curves.items():
            for row in (rows[job, threads] for job in jobs):
                if "skipped" not in row:
                    size = math.prod(row["shape"])
                    points[name].append((size, row["ns_per_element"]))
                    if name == "fastdrop, out=":
                        points["copy (np.copyto)"].append((size, row["yardsticks"]["copy"] * 1e9 / size))
        points = {name: line for name, line in points.items() if line}
        for name, line in points.items():
            panel.plot(*zip(*line, strict=True), marker="o", ms=4, **style[name])
        panel.set(xscale="log", yscale="log", xlabel="elements (float32, p = 0.1)")
        panel.set_title("one thread" if threads == 1 else f"{threads} threads", fontsize=12)
        panel.grid(True, which="major", alpha=0.35)
        ends.append({name: line[-1] for name, line in points.items()})
    for panel, points in zip(axes, ends, strict=True):  # when all lines are there: the panels share a y axis
        label(panel, points, {name: line["color"] for name, line in style.items()})
    axes[0].set_ylabel("nanoseconds an element")
    chart.suptitle(f"Dropout: time an element\n{machine}", fontsize=11)
    chart.savefig(path, dpi=120)
