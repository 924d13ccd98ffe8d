"""The picture of a demo run: decision regions on the left, learning curves on the right.

Drawn on a `Figure` of its own, without pyplot: no window system, no global state of matplotlib's.
"""

import numpy as np

from .training import WAYS

COLOURS = dict(zip(WAYS, ("#7f7f7f", "#e69f00", "#0072b2"), strict=True))
CLASSES = ("#d55e00", "#009e73", "#56b4e9")
GRID = 240  # points along each axis


def regions(axes, training):
    """Where the network of a two-dimensional problem sees which class, under the validation points."""
    from matplotlib.colors import ListedColormap

    problem = training.problem
    side = np.linspace(-1.1, 1.1, GRID, dtype=np.float32)
    across, up = np.meshgrid(side, side)
    points = np.stack([across.ravel(), up.ravel()], axis=1)
    parts = np.array_split(points, GRID // 10)  # a few MB of hidden layer at a time
    seen = np.concatenate([training.network(part).argmax(axis=1) for part in parts]).reshape(across.shape)
    colours = ListedColormap(CLASSES)
    axes.pcolormesh(across, up, seen, cmap=colours, vmin=0, vmax=2, alpha=0.35, shading="nearest", rasterized=True)
    x, labels = problem.x_val, problem.labels_val
    axes.scatter(x[:, 0], x[:, 1], c=labels, cmap=colours, vmin=0, vmax=2, s=4, linewidths=0)
    axes.set(aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    axes.set_xlabel("points: validation data; background: the network's answer")
    right = 100 * training.val[-1].accuracy
    axes.set_title(f"{problem.name}, {training.way}: {right:.1f} % right after {training.epochs[-1]} epochs")


def curves(axes, trainings):
    """Loss over epochs, of the validation data and, thin, of the training data."""
    for t in trainings:
        axes.plot(t.epochs, [s.loss for s in t.val], color=COLOURS[t.way], lw=2, label=t.way)
        axes.plot(t.epochs, [s.loss for s in t.train], color=COLOURS[t.way], lw=1, ls=":")
    problem = trainings[0].problem
    axes.plot([], [], color="black", lw=2, label="validation data")
    axes.plot([], [], color="black", lw=1, ls=":", label="training data")
    axes.set(xlabel="epoch", ylabel="cross-entropy, dropout off", ylim=(0, None), xlim=(0, None))
    losses = [s.loss for t in trainings for s in t.train + t.val]
    if max(losses) > 10 * min(losses):
        axes.set_yscale("log")
        axes.set_ylim(min(losses), None)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{problem.name}: loss while learning, p = {problem.p}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def picture(problems, path):
    """Draw and write the PNG.

    Parameters
    ----------
    problems : list of list of Training
        Those of each problem.
    path : str or path-like
    """
    from matplotlib.figure import Figure

    plane = [t for ts in problems for t in ts if t.problem.x.shape[1] == 2 and t.way != "NumPy binomial"]
    rows = max(len(plane), len(problems))
    figure = Figure(figsize=(11, 4.5 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    for at, training in enumerate(plane):
        regions(figure.add_subplot(grid[at, 0]), training)
    for at, trainings in enumerate(problems):
        curves(figure.add_subplot(grid[at, 1]), trainings)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    figure.savefig(path, format="png", dpi=84)  # 924 pixels wide, as wide as a README shows it
