"""Contracts of Keras alone: what a block has to do for dtype policies, saved models and exported ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..adapters.keras import to_array, to_tensor
from ..contract import Array
from ..ops.keras import keras
from ..portable import load_weights, weights
from . import CLOSE, HALF, hold, within
from .case import EPS, Case
from .oracle import expected_and_condition


def mixed_precision(case: Case, backend: str) -> float:
    """Under the policy mixed_float16 output and coefficients are float16, and the spec's as far as that tells."""
    block, inputs = _made(case, "mixed_float16")
    worst = 0.0
    for what, call in (("output", block), ("attention", block.attention)):
        tensor = call(*inputs)
        kind = keras.backend.standardize_dtype(tensor.dtype)
        hold(kind == "float16", f"expected {what} in float16, got {kind}: cast a variable that is used directly")
        expected, moved = expected_and_condition(case, what)
        allowed = HALF * EPS["float16"] * (moved + np.abs(expected).max())
        error = to_array(tensor, block).astype(np.float64) - expected
        worst = max(worst, within(f"{what} in mixed precision", error, allowed))
    return worst


def dtype(case: Case, backend: str) -> float:
    """`dtype` decides what every variable is made as."""
    block = _new(case, "float64")
    for variable in block.weights:
        kind = keras.backend.standardize_dtype(variable.dtype)
        hold(kind == "float64", f"with dtype='float64', {variable.path} is {kind}")
    return 0.0


def saved_model(case: Case, backend: str) -> float:
    """A functional model with the block is saved as .keras and loads without custom_objects, computing the same."""
    model, inputs = _functional(case)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        return _same(model, keras.models.load_model(file, compile=False), inputs)


def exported_model(case: Case, backend: str) -> float:
    """model.export makes a SavedModel that computes the same."""
    model, inputs = _functional(case)
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        layer = keras.layers.TFSMLayer(folder, call_endpoint="serve")
        return _same(model, lambda xs: layer(*[xs] if len(xs) > 1 else xs), inputs)


def contracts() -> list[Callable[[Case, str], float]]:
    """Those that Keras's backend can be held to: Keras exports a SavedModel of itself on TensorFlow alone."""
    on_tensorflow = keras.backend.backend() == "tensorflow"
    return [mixed_precision, dtype, saved_model, *([exported_model] if on_tensorflow else [])]


def _new(case: Case, policy: str) -> Any:
    """A built block with a dtype policy."""
    data_format = "channels_last" if case.channels_last else "channels_first"
    block: Any = registry.get(case.name, backend="keras")(
        **case.spec.config(), data_format=data_format, dtype=policy
    )
    block.build(*_shapes(case))
    return block


def _made(case: Case, policy: str) -> tuple[Any, list[Any]]:
    """The same with the case's weights, and its inputs in the policy's compute dtype."""
    block = _new(case, policy)
    kinds = {name: array.dtype for name, array in weights(block).items()}
    load_weights(block, {name: array.astype(kinds[name]) for name, array in case.weights().items()})
    return block, [to_tensor(x, block) for x in case.inputs()]


def _shapes(case: Case) -> list[tuple[int, ...]]:
    """The shapes of the case's inputs, in its data format."""
    return [(n, *space, c) if case.channels_last else (n, c, *space) for n, c, *space in case.shapes]


def _functional(case: Case) -> tuple[Any, list[Any]]:
    """A float32 model of the block alone, and inputs for it."""
    block = replace(case, dtype="float32").block("keras")
    any_size = [(None,) * (len(shape) - 2) for shape in case.shapes]
    shapes = [(*space, c) if block.channels_last else (c, *space)
              for space, c in zip(any_size, block.spec.inputs, strict=True)]   # fmt: skip
    inputs = [keras.Input(shape, dtype="float32") for shape in shapes]
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], block(*inputs))
    return model, [to_tensor(x, block) for x in case.inputs()]


def _same(model: Any, other: Callable[..., Any], inputs: list[Any]) -> float:
    given = inputs if len(inputs) > 1 else inputs[0]
    expected, got = (_array(call(given)) for call in (model, other))
    return within("the saved model", (got - expected) / max(float(np.abs(expected).max()), 1e-6), CLOSE)


def _array(tensor: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)
