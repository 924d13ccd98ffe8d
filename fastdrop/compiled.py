"""The compiled extension where there is one: None, and why not, where there is none."""

try:
    import fastdrop._core as _core  # not "from . import": its error blames a circular import where there is no _core
except ImportError as error:
    _core, why_not = None, str(error)
else:
    why_not = None

__all__ = ["_core", "why_not"]
