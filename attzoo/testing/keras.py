"""Contracts of Keras blocks only: dtype policies, saved models and exported models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..adapters.keras import to_array, to_tensor
from ..contract import Array, Spec
from ..ops.keras import keras
from ..portable import load_weights, weights
from .case import EPS, Case
from .compare import EXPORT_TOLERANCE, HALF_TOLERANCE, ensure, within
from .oracle import attention_results, expected_and_condition


def spreads_nonfinite(spec: Spec) -> bool:
    """Whether a NaN or an infinity in one channel makes other channels NaN: with convolutions of each channel on JAX.

    On a CPU, XLA computes these as convolutions of all channels whose other weights are 0, and 0 * infinity is NaN.
    """
    shapes = [weight.shape for weight in spec.weights.values() if len(weight.shape) > 2]
    return keras.backend.backend() == "jax" and any(shape[:2] == (spec.channels, 1) for shape in shapes)


def mixed_precision(case: Case, backend: str) -> float:
    """Check that outputs and coefficients under mixed_float16 are float16; return their error / tolerance."""
    block, inputs = _block_and_inputs(case, "mixed_float16")
    worst = 0.0
    results = {"output": block(*inputs)} | attention_results(block.attention(*inputs))
    for name, tensor in results.items():
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        fix = "cast weights with attzoo.ops.keras.in_dtype_of"
        ensure(dtype == "float16", f"expected {name} in float16, got {dtype}: {fix}")
        expected, condition = expected_and_condition(case, name)
        allowed = HALF_TOLERANCE * EPS["float16"] * (condition + np.abs(expected).max())
        error = to_array(tensor, block).astype(np.float64) - expected
        worst = max(worst, within(f"{name} in mixed precision", error, allowed))
    return worst


def dtype(case: Case, backend: str) -> float:
    """Check that variables, the output and coefficients have the dtype of the argument `dtype`; return 0."""
    block = _new(case, "float64")
    _ensure_float64({variable.path: variable for variable in block.weights})
    inputs = [to_tensor(x, block) for x in case.inputs()]
    _ensure_float64({"output": block(*inputs)} | attention_results(block.attention(*inputs)))
    return 0.0


def _ensure_float64(tensors: Mapping[str, Any]) -> None:
    """Raise AssertionError, with the name, for a tensor or variable of another dtype than float64."""
    for name, tensor in tensors.items():
        actual = keras.backend.standardize_dtype(tensor.dtype)
        ensure(actual == "float64", f"expected {name} in float64, the argument dtype, got {actual}")


def saved_model(case: Case, backend: str) -> float:
    """Check that a model saved as .keras loads without custom_objects and has the same output.

    Return error / tolerance.
    """
    model, inputs = _functional(case)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        return _same(model, keras.models.load_model(file, compile=False), inputs)


def exported_model(case: Case, backend: str) -> float:
    """Compare the output of a SavedModel, written by model.export, with the model; return error / tolerance."""
    model, inputs = _functional(case)
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        layer = keras.layers.TFSMLayer(folder, call_endpoint="serve")
        return _same(model, lambda xs: layer(*[xs] if len(xs) > 1 else xs), inputs)


def contracts() -> list[Callable[[Case, str], float]]:
    """Return the contracts that the backend of Keras supports; only TensorFlow can export a SavedModel."""
    on_tensorflow = keras.backend.backend() == "tensorflow"
    return [mixed_precision, dtype, saved_model, *([exported_model] if on_tensorflow else [])]


def _new(case: Case, policy: str) -> Any:
    """Return a built block with a dtype policy."""
    data_format = "channels_last" if case.channels_last else "channels_first"
    block: Any = registry.get(case.name, backend="keras")(
        **case.spec.config(), data_format=data_format, dtype=policy
    )
    block.build(*((n, *sizes, c) if case.channels_last else (n, c, *sizes) for n, c, *sizes in case.shapes))
    return block


def _block_and_inputs(case: Case, policy: str) -> tuple[Any, list[Any]]:
    """Return a block with the weights of the case, and inputs in the compute dtype of the policy."""
    block = _new(case, policy)
    dtypes = {name: array.dtype for name, array in weights(block).items()}
    load_weights(block, {name: array.astype(dtypes[name]) for name, array in case.weights().items()})
    return block, [to_tensor(x, block) for x in case.inputs()]


def _functional(case: Case) -> tuple[Any, list[Any]]:
    """Return a float32 model that consists of the block, and inputs for it."""
    block = replace(case, dtype="float32").block("keras")
    unknown_sizes = [(None,) * (len(shape) - 2) for shape in case.shapes]
    shapes = [(*sizes, c) if block.channels_last else (c, *sizes)
              for sizes, c in zip(unknown_sizes, block.spec.inputs, strict=True)]   # fmt: skip
    inputs = [keras.Input(shape, dtype="float32") for shape in shapes]
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], block(*inputs))
    return model, [to_tensor(x, block) for x in case.inputs()]


def _same(model: Any, loaded: Callable[..., Any], inputs: list[Any]) -> float:
    """Compare the outputs of a model before and after saving; return error / tolerance.

    Raises AssertionError if it is larger than 1.
    """
    argument = inputs if len(inputs) > 1 else inputs[0]
    expected, got = (_array(call(argument)) for call in (model, loaded))
    return within("the saved model", (got - expected) / max(float(np.abs(expected).max()), 1e-6), EXPORT_TOLERANCE)


def _array(tensor: Any) -> Array:
    """Return a tensor as a float64 array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)
