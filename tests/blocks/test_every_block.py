"""What holds of the arguments of every block and network."""

import json
from dataclasses import fields

import numpy as np
import pytest

import attzoo
from attzoo import registry
from attzoo.testing.case import choices

names = pytest.mark.parametrize("name", [*registry.BLOCKS, *registry.NETWORKS])
UNET = {"in_channels": 3, "out_channels": 2, "kernel_size": 5, "strides": 3, "spatial_dims": 1}


def required(name):
    """A block's or network's required arguments, all of them numbers of channels."""
    return {argument.name: 8 for argument in attzoo.info(name).arguments if argument.required}


def integers(name):
    """Arguments for a block with integers among them: those of its examples, and each that its spec offers to try."""
    spec, least = attzoo.get(name, backend="numpy"), required(name)
    yield from (example.arguments for example in registry.examples(name).values())
    for argument, values in choices(spec).items():
        yield from (least | {argument: value} for value in values if type(value) is int)


@pytest.mark.parametrize(("name", "arguments"), [
    *((name, arguments) for name in registry.BLOCKS for arguments in integers(name)), ("unet", UNET),
])   # fmt: skip
def test_integers_of_numpy_are_taken_and_become_pythons(name, arguments):
    """Else a block whose sizes came out of an array's shape or arithmetic could not be saved."""
    block = attzoo.get(name, backend="numpy")
    spec = block(**{name: np.int64(value) if type(value) is int else value for name, value in arguments.items()})
    assert json.dumps(spec.config()) == json.dumps(block(**arguments).config())


@names
def test_an_argument_that_is_of_no_kind_is_refused_by_its_name(name):
    spec = attzoo.get(name, backend="numpy")
    for field in fields(spec):
        named = "block" if field.name == "skip" else field.name   # what stands in a skip is a block, by its name
        with pytest.raises((TypeError, ValueError), match=f"^{named} must be "):
            spec(**required(name) | {field.name: object()})
