"""The figures of the trainings as plain text."""

from statistics import median

HEAD = (
    "problem   way              accuracy          loss              ms per   ms in dropout   dropout",
    "                           train   valid.    train   valid.    epoch    per epoch       vs NumPy",
)


def ratio(training, trainings):
    """How many times faster than NumPy's dropout on the same problem."""
    numpy = next(t for t in trainings if t.way == "NumPy binomial")
    return median(numpy.dropout_seconds) / median(training.dropout_seconds)


def row(training, trainings):
    """The line of one of a problem's trainings."""
    train, val = training.train[-1], training.val[-1]
    line = f"{training.problem.name if training is trainings[0] else '':8}  {training.way:15}"
    line += f"  {train.accuracy:.3f}   {val.accuracy:.3f}     {train.loss:.3f}   {val.loss:.3f}"
    line += f"  {1e3 * median(training.epoch_seconds):8.2f}"
    if training.way != "no dropout":
        line += f"  {1e3 * median(training.dropout_seconds):14.2f}  {ratio(training, trainings):7.1f} x"
    return line


def table(problems):
    """One line a training.

    Parameters
    ----------
    problems : list of list of Training
        Those of each problem.

    Returns
    -------
    str
    """
    lines = [*HEAD]
    for trainings in problems:
        lines.append("-" * max(map(len, HEAD)))
        lines += [row(training, trainings) for training in trainings]
    return "\n".join(lines)
