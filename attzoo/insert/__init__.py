"""Blocks in networks that somebody else wrote: `attach` puts them in, `swap` exchanges attention, `detach` takes out.

In PyTorch the network changes in place and keeps every name of its state dict. A block becomes the child `attention` of
the module after which it stands, and a forward hook calls it. In Keras a network cannot change, so that a new
functional model is made, which holds copies of the layers and their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from re import Pattern
from typing import Any

from .. import registry
from ..adapters import framework_of
from ..contract import STARTS, choice
from .report import Place as Place
from .report import Report as Report

Where = str | Pattern[str] | type | Callable[[str, Any], bool]


def attach(
    model: Any,
    name: str,
    *,
    after: Where | Sequence[Where],
    start: str = "default",
    example: Any = None,
    **options: Any,
) -> Report:
    """Put a block after each of some modules or layers of a network::

        report = attzoo.attach(model, "se", after="residual", start="identity", example=torch.zeros(1, 3, 224, 224))
        print(report)

    Nothing changes where an error is raised.

    Args:
        model: a torch module, which changes in place, or a functional Keras model, which does not change.
        name: the block, as in `attzoo.create`.
        after: where. A path as in `named_modules` (in Keras the names of layers, joined by dots), in which "*" stands
            for any text, "?" for any letter and "[...]" for one of some letters; a compiled regular expression for the
            whole path; a class; a function of path and module that returns a bool; a list of these; or the name of a
            place: "residual", the end of every residual branch, in ResNets, ResNeXts, ConvNeXts, MobileNets and
            EfficientNets of torchvision, timm and keras.applications; "skips", every skip connection of a UNet of
            MONAI, for blocks with a gating signal.
        start: "identity" lets the block begin as x + gamma * (block(x) - x) with gamma = 0, so that the outputs of a
            trained network do not change when it is put in; "default" is the block alone.
        example: an input of the network, or a tuple or dict of its arguments; a list is one input. Needed where a
            module does not say how many channels it returns. With it the report states the multiply-adds, and a module
            that is called several times, or never, raises an error. In Keras not needed.
        options: arguments of the block after its channels, or `variant`. In torch, device and dtype are those of the
            module unless they are given here.

    Returns:
        What was put where: print it, or read its `places`. `report.model` is the network with the blocks.

    Raises:
        TypeError: `model` is no network of torch or Keras.
        ValueError: `after` matches nothing, or modules inside one another; the channels at a place are not known, or
            the block does not take them; a module is called several times, or never; there is a block already.

    """
    registry.locate(name)
    choice("start", start, STARTS)
    report: Report = _framework(model).attach(model, name, after, start, example, options)
    return report


def swap(model: Any, name: str, *, where: Where | Sequence[Where], example: Any = None, **options: Any) -> Report:
    """Exchange attention modules of a network, of attzoo or of another library, for blocks `name`.

    Where the module in place computes the same as the block, and `name` has its library among its sources (squeeze and
    excitation of timm, torchvision and keras.applications, ECA and CBAM of timm, and others), the block has the
    module's arguments and its weights: the outputs of the network stay. Other blocks begin anew.

    Args:
        model: a torch module, which changes in place, or a functional Keras model, which does not change. In Keras
            blocks of attzoo are exchanged, and attention that ends in a Multiply, which is the layer to choose.
        name: the block, as in `attzoo.create`.
        where: which modules, as `after` in `attach`. Modules of class nn.Identity, which timm has where a network has
            no attention, are left.
        example: as in `attach`.
        options: arguments of the block after its channels, or `variant`. They override what is read from the module.

    Returns:
        What was put where.

    Raises:
        TypeError, ValueError: as `attach`.

    """
    registry.locate(name)
    report: Report = _framework(model).swap(model, name, where, example, options)
    return report


def detach(model: Any) -> Report:
    """Take every block out again that `attach` has put into a network; it is as it was before.

    Raises:
        TypeError: `model` is no network of torch or Keras.
        ValueError: it holds no attached block.

    """
    report: Report = _framework(model).detach(model)
    return report


def _framework(model: Any) -> Any:
    """Return the module of this package for the framework of a model."""
    backend = framework_of(model)
    if backend is None:
        raise TypeError(f"expected a model of torch or Keras, got {type(model).__name__}")
    return import_module(f"{__name__}.{backend}")
