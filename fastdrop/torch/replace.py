"""A finished model with our dropout in the place of torch's, and back: a change of the modules' class, in place.

Hooks, names, training flags and whoever else holds a module see the same object as before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from . import modules

if TYPE_CHECKING:
    from .keys import Generator

OURS = {
    getattr(nn, name): getattr(modules, name)
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
}
TORCHS = {ours: theirs for theirs, ours in OURS.items()}
INSIDE = {
    nn.MultiheadAttention: "the dropout of attention weights is inside of torch's own function",
    nn.RNNBase: "the dropout between layers is inside of torch's own function",
}


@dataclass
class Replaced:
    """What `replace_dropout` did: module names to what was done, and to why a module was left alone."""

    done: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"{name or '(the model)'}: {what}" for name, what in self.done.items()]
        return "\n".join(rows + [f"{name or '(the model)'}: left, {why}" for name, why in self.left.items()])


def replace_dropout(model: nn.Module, generator: Generator = None) -> Replaced:
    """Make every dropout module of a model one of `fastdrop.torch`, in place. `restore_dropout` undoes it.

    Parameters
    ----------
    model : torch.nn.Module
    generator : torch.Generator or fastdrop.Rng, optional
        Where masks come from; by default torch's own CPU generator.

    Returns
    -------
    Replaced
        ``done`` and ``left``: dictionaries by the names of ``model.named_modules()``. Left alone are classes of the
        user's own and what torch does inside of one function: the dropout of `torch.nn.MultiheadAttention` and
        `torch.nn.LSTM`. Calls of `torch.nn.functional.dropout` in a model's own ``forward`` cannot be seen.

    Raises
    ------
    TypeError
        If ``model`` is no module.

    Notes
    -----
    Results in evaluation, parameters and ``state_dict`` stay as they are.

    Examples
    --------
    >>> import fastdrop.torch as fdt, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.LSTM(4, 4, 2, dropout=0.1))
    >>> print(fdt.replace_dropout(model))
    1: Dropout(p=0.2, inplace=False)
    2: left, the dropout between layers is inside of torch's own function
    >>> isinstance(model[1], fdt.Dropout)
    True
    """
    report = Replaced()
    for name, module in _modules(model):
        if type(module) in OURS:
            module.__class__ = OURS[type(module)]
            module.generator = generator
            module._was_torchs = True
            report.done[name] = repr(module)
        elif isinstance(module, nn.modules.dropout._DropoutNd) and not isinstance(module, modules._Dropout):
            report.left[name] = f"its class {type(module).__name__} is none of torch's"
        else:
            for kind, why in INSIDE.items():
                if isinstance(module, kind) and module.dropout:
                    report.left[name] = why
    return report


def restore_dropout(model: nn.Module) -> list[str]:
    """Make what `replace_dropout` has changed torch's own again; modules that were made as ours stay.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of str
        The names of the modules that were changed.

    Raises
    ------
    TypeError
        If ``model`` is no module.

    Examples
    --------
    >>> import fastdrop.torch as fdt, torch
    >>> model = torch.nn.Sequential(torch.nn.Dropout(0.2), fdt.Dropout(0.2))
    >>> _ = fdt.replace_dropout(model)
    >>> fdt.restore_dropout(model)
    ['0']
    """
    names = []
    for name, module in _modules(model):
        if "_was_torchs" in vars(module):
            module.__class__ = TORCHS[type(module)]
            del module.generator, module._was_torchs
            names.append(name)
    return names


def _modules(model):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return list(model.named_modules())
