"""The figures of a list of trainings as plain text."""

HEAD = (
    "problem   way              accuracy          loss              ms per   ms in dropout   dropout",
    "                           train   valid.    train   valid.    epoch    per epoch       vs NumPy",
)


def ratio(training, trainings):
    """How many times faster than NumPy's dropout on the same problem."""
    numpy = next(t for t in trainings if t.problem is training.problem and t.way == "NumPy binomial")
    return numpy.dropout_seconds / training.dropout_seconds


def row(training, trainings, first):
    t = training
    cells = f"{t.problem.name if first else '':8}  {t.way:15}"
    train, val = t.train[-1], t.val[-1]
    cells += f"  {train.accuracy:.3f}   {val.accuracy:.3f}     {train.loss:.3f}   {val.loss:.3f}"
    cells += f"  {1e3 * t.epoch_seconds:8.2f}"
    if t.way != "no dropout":
        cells += f"  {1e3 * t.dropout_seconds:14.2f}  {ratio(t, trainings):7.1f} x"
    return cells


def table(trainings):
    """One row a training; a line between problems.

    Parameters
    ----------
    trainings : list of Training
        Those of a problem side by side.

    Returns
    -------
    str
    """
    lines = [*HEAD]
    last = None
    for t in trainings:
        if t.problem is not last:
            lines.append("-" * max(map(len, HEAD)))
        lines.append(row(t, trainings, t.problem is not last))
        last = t.problem
    return "\n".join(lines)
