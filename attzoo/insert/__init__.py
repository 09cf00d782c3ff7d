"""Blocks in existing networks: `attach` adds blocks, `swap` replaces attention modules, `detach` removes blocks.

In PyTorch the network changes in place, and all keys of its state dict remain. A block becomes the child `attention` of
the module that it follows, and a forward hook of that module calls it. A Keras model cannot change: a new functional
model is created, with copies of the layers and their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from re import Pattern
from typing import Any

from .. import registry
from ..adapters import framework_of
from ..contract import STARTS, choice
from ..moved import moved
from .report import Entry as Entry
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
    """Add a block after every selected module or layer of a network::

        report = attzoo.attach(model, "se", after="residual", start="identity", example=torch.zeros(1, 3, 224, 224))
        print(report)

    If an error is raised, the network is unchanged.

    Args:
        model: a torch module, which changes in place, or a functional Keras model, which does not change.
        name: the name of the block, as in `attzoo.create`.
        after: the modules or layers that get a block. A path as in `named_modules` (in Keras the names of layers,
            joined by dots), in which "*" matches any text, "?" one character and "[...]" one of these characters; a
            compiled regular expression for the whole path; a class; a function of path and module that returns a bool;
            a list of these; or "residual", the end of every residual branch in ResNets, ResNeXts, ConvNeXts,
            MobileNets and EfficientNets of torchvision, timm and keras.applications; or "skips", every skip connection
            of MONAI's UNet, for blocks with a gating signal.
        start: "identity" computes x + gamma * (block(x) - x) with a trainable gamma that is initially 0, so that the
            outputs of a trained network do not change; "default" computes block(x). "identity" is refused for blocks
            whose own initial output is x, such as `gct`, because they would never learn with it.
        example: an input of the network, or a tuple or dict of its arguments; a list is one input. Required if the
            class of a module does not declare its number of output channels. With an example, the report has the
            multiply-adds, and a module that is called several times, or never, raises an error. Not needed in Keras.
        options: arguments of the block after its channels, or `variant`. In torch, device and dtype are those of the
            module unless they are given here.

    Returns:
        A report: `print(report)` shows a table of the blocks, `report.entries` lists them, and `report.model` is the
        network with the blocks.

    Raises:
        TypeError: `model` is not a network of torch or Keras.
        ValueError: `after` matches no module, or a module and a module inside it; the number of channels is unknown,
            or the block does not accept it; a module is called several times, or never, or has a block already.

    """
    registry.locate(name)
    choice("start", start, STARTS)
    report: Report = _framework(model).attach(model, name, after, start, example, options)
    return report


def swap(model: Any, name: str, *, where: Where | Sequence[Where], example: Any = None, **options: Any) -> Report:
    """Replace attention modules of a network, of attzoo or of another library, by blocks.

    If a module computes the same as the block, and its library is among the block's sources (squeeze and excitation of
    timm, torchvision and keras.applications, ECA and CBAM of timm, and others), the block gets the module's arguments
    and weights, and the outputs of the network do not change. Other blocks get new initial weights. In torch, a block
    that was attached with start="identity" is replaced by one with this start, whose gamma is 0.

    Args:
        model: a torch module, which changes in place, or a functional Keras model, which does not change. In Keras,
            blocks of attzoo are replaced, and attention that ends in a Multiply layer, which is the layer to choose.
        name: the name of the block, as in `attzoo.create`.
        where: the modules to replace, as `after` in `attach` but without "residual" and "skips". Modules of class
            nn.Identity, which timm has where a network has no attention, are not replaced.
        example: as in `attach`.
        options: arguments of the block after its channels, or `variant`. They override what is read from the module.

    Returns:
        A report of the new blocks, as in `attach`.

    Raises:
        TypeError, ValueError: as `attach`; also if the block gets weights of layers that other layers of the network
            use too, or that have settings in Keras which a block does not have, such as a regularizer.

    """
    registry.locate(name)
    report: Report = _framework(model).swap(model, name, where, example, options)
    return report


def detach(model: Any) -> Report:
    """Remove every block that `attach` added to a network; return a report of the removed blocks.

    A torch network changes in place. In Keras, `report.model` is a new model.

    Raises:
        TypeError: `model` is not a network of torch or Keras.
        ValueError: the network has no attached block.

    """
    report: Report = _framework(model).detach(model)
    return report


def _framework(model: Any) -> Any:
    """Return the module of this package for the framework of a model."""
    backend = framework_of(model)
    if backend is None:
        raise TypeError(f"expected a model of torch or Keras, got {type(model).__name__}")
    return import_module(f"{__name__}.{backend}")


def __getattr__(name: str) -> Any:
    """Return the object with an earlier name, with a warning."""
    return moved(__name__, name, {"Place": "attzoo.insert.report.Entry"})
