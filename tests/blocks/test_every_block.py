"""Arguments of every block and network."""

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
    """Return the required arguments of a block or network, all numbers of channels, with the value 8 each."""
    return {argument.name: 8 for argument in attzoo.info(name).arguments if argument.required}


def integers(name):
    """Yield arguments of a block with integers: those of its examples, and each integer choice of its spec."""
    spec, base = attzoo.get(name, backend="numpy"), required(name)
    yield from (example.arguments for example in registry.examples(name).values())
    for argument, values in choices(spec).items():
        yield from (base | {argument: value} for value in values if type(value) is int)


@pytest.mark.parametrize(("name", "arguments"), [
    *((name, arguments) for name in registry.BLOCKS for arguments in integers(name)), ("unet", UNET),
])   # fmt: skip
def test_numpy_integers_become_python_integers(name, arguments):
    """Otherwise a block whose sizes are computed with NumPy could not be saved."""
    block = attzoo.get(name, backend="numpy")
    spec = block(**{name: np.int64(value) if type(value) is int else value for name, value in arguments.items()})
    assert json.dumps(spec.config()) == json.dumps(block(**arguments).config())


@names
def test_error_for_an_argument_of_another_type_names_it(name):
    spec = attzoo.get(name, backend="numpy")
    for field in fields(spec):
        name_in_error = "block" if field.name == "skip" else field.name   # skip takes the name of a block
        with pytest.raises((TypeError, ValueError), match=f"^{name_in_error} must be "):
            spec(**required(name) | {field.name: object()})
