"""What ``fastdrop bench`` and the suites in ``bench/`` share: how fast, against what, and proved equal first.

    cases     the one list of what is measured: every kernel, the bytes it moves, the sizes
    rivals    the same operations by NumPy, torch, JAX, Keras and Numba
    measure   how a time is taken: functions in turn, medians, ratios of one run
    values    what is measured otherwise: numbers that a function returns
    accuracy  how exact the losses are
    worker    one process for each library, with its CPUs and threads; one row for each measurement
    targets   which ratios are judged, and against what numbers
    report    the table and the picture
    command   ``fastdrop bench``

A new kernel is one entry in `cases.CASES`, a new number to reach one entry in `targets.CHECKS`.  Inside the package,
not beside it, since ``fastdrop bench`` runs from an installed wheel.
"""
