"""All generators, by the name of the public function; a public name without one is an error."""

import fastdrop as fd

from . import elementwise, losses, rows, values  # noqa: F401  (each adds its own to the table)
from .table import GENERATORS

__all__ = ["GENERATORS", "missing"]


def missing():
    """Public names that no generator serves."""
    served = {name.partition(".")[0] for name in GENERATORS}
    return [name for name in fd.__all__ if name not in served and not name.startswith("__")]
