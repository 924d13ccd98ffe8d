"""The floating-point dtypes that the kernels know, declared once: sizes, spacings, and what they are computed in."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Float:
    """A dtype. Its numbers are apart by 2**-digits of them; the smallest is 2**least."""

    name: str
    itemsize: int
    digits: int
    least: int
    largest: float
    computed_in: type  # what kernels turn it into, and make sums in
    stored: type  # what kernels that do not know it see its memory as

    @property
    def dtype(self):
        """NumPy's dtype; what NumPy has not, the package ml_dtypes, an extra, has."""
        if hasattr(np, self.name):
            return np.dtype(self.name)
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, self.name))


FLOATS = {
    each.name: each
    for each in (
        Float("float16", 2, 10, -24, 65504.0, np.float32, np.uint16),
        Float("bfloat16", 2, 7, -133, float.fromhex("0x1.FEp127"), np.float32, np.uint16),
        Float("float32", 4, 23, -149, float.fromhex("0x1.FFFFFEp127"), np.float32, np.float32),
        Float("float64", 8, 52, -1074, float.fromhex("0x1.FFFFFFFFFFFFFp1023"), np.float64, np.float64),
    )
}
NAMES = " or ".join(", ".join(FLOATS).rsplit(", ", 1))  # in messages
