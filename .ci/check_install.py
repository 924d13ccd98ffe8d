"""Is this an installed fastdrop that works?  ``python check_install.py native|reference``, outside the checkout."""

import sys
import warnings

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import fastdrop as fd

import numpy as np

expected = sys.argv[1]
assert "site-packages" in fd.__file__, fd.__file__
assert fd.get_backend() == expected, fd.get_backend()
warned = [str(warning.message).partition(",")[0] for warning in said]
assert warned == ([] if expected == "native" else [f"fastdrop runs on its {expected} backend"]), warned

x = np.arange(1, 65, dtype=np.float32)
y, mask = fd.dropout(x, 0.5, rng=0)
assert mask.bits().tobytes().hex() == "0c19c5322905b53c"  # the first words of seed 0, stream 0: the same everywhere
assert np.array_equal(y, np.where(mask.keep(), 2 * x, 0))
assert np.array_equal(fd.dropout_backward(x, mask), y)
print(f"fastdrop {fd.__version__}, Python {sys.version.split()[0]}, NumPy {np.__version__}: {expected} backend works")
