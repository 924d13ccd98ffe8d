"""Where arrays come in and results go out, each in its owner's own kind: one table, by the place of the memory.

A border makes an array of anybody's one that operations work on (`take`), makes new ones (`new`, on a device: on the
host operations make ndarrays themselves) and gives a result back as its owner has it (`deliver`).  What it needs to
know of libraries, torch and JAX say, it knows by the module of an array's type, and imports none of them.
"""

from . import cuda, host
from .host import on_device

BORDERS = {border.place: border for border in (host.Border, cuda.Border)}

__all__ = ["BORDERS", "on_device"]
