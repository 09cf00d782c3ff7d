"""Arguments of every block and network."""

import json
from dataclasses import fields

import numpy as np
import pytest
from samples import accepts

import attzoo
from attzoo import registry
from attzoo.ops import numpy as ops
from attzoo.testing.case import choices

names = pytest.mark.parametrize("name", [*registry.BLOCKS, *registry.NETWORKS])
UNET = {"in_channels": 3, "out_channels": 2, "kernel_size": 5, "strides": 3, "spatial_dims": 1}


def required(name):
    """Return arguments of a block or network: 8 for each number of channels, and others that 8 channels require."""
    card = attzoo.info(name)
    return {argument.name: 8 for argument in card.arguments if argument.required} | card.assumed(8)


def integers(name):
    """Yield arguments of a block with integers: those of its examples, and each integer choice of its spec.

    Where the defaults of the others do not allow a choice, one other argument has another value, the first allowed.
    """
    spec, base = attzoo.get(name, backend="numpy"), required(name)
    yield from (example.arguments for example in registry.examples(name).values())
    others = [{}, *({other: value} for other, values in choices(spec).items() for value in values)]
    for argument, values in choices(spec).items():
        for value in (value for value in values if type(value) is int):
            yield next(a for other in others if accepts(spec, a := base | other | {argument: value}))


@pytest.mark.parametrize(("name", "arguments"), [
    *((name, arguments) for name in registry.BLOCKS for arguments in integers(name)), ("unet", UNET),
])   # fmt: skip
def test_numpy_scalars_become_python_scalars(name, arguments):
    """Otherwise a block whose sizes are computed with NumPy could not be saved."""
    block = attzoo.get(name, backend="numpy")
    scalars = {int: np.int64, bool: np.bool_}
    spec = block(**{name: scalars.get(type(value), lambda v: v)(value) for name, value in arguments.items()})
    assert json.dumps(spec.config()) == json.dumps(block(**arguments).config())


@pytest.mark.parametrize("name", registry.BLOCKS)
def test_coefficients_agree_with_outputs_in_training_and_inference(name):
    """Inference is the default and does not change running statistics."""
    rng = np.random.default_rng(0)
    for example in registry.examples(name).values():
        spec = attzoo.get(name, backend="numpy")(**example.arguments)
        inputs = [rng.normal(size=shape) for shape in example.shapes]
        weights = {key: rng.uniform(0.5, 2, weight.shape) for key, weight in spec.weights.items()}

        def compute(function, inputs=inputs, weights=weights, **options):
            arrays = {key: array.copy() for key, array in weights.items()}
            result = function(*inputs, weights=arrays, **options)
            if statistics := [key for key in weights if key.endswith(".mean")]:
                assert options.get("training", False) == any((arrays[key] != weights[key]).any() for key in statistics)
            return result

        for options in ({}, {"training": False}, {"training": True}):
            output, coefficients = compute(spec, **options), compute(spec.attention, **options)
            copies = {key: array.copy() for key, array in weights.items()}
            operands = spec.operands(*inputs, weights=copies, **options)
            if not getattr(spec, "output_transform", False):
                np.testing.assert_allclose(output, spec.combine(operands, coefficients, ops), rtol=1e-12)


@names
def test_error_for_an_argument_of_another_type_names_it(name):
    spec = attzoo.get(name, backend="numpy")
    for field in fields(spec):
        name_in_error = "block" if field.name == "skip" else field.name   # skip takes the name of a block
        with pytest.raises((TypeError, ValueError), match=f"^{name_in_error} must be "):
            spec(**required(name) | {field.name: object()})
