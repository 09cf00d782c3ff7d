"""Run Keras blocks on TensorFlow, JAX and torch: a forward pass, or a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from .timer import Call


class Backend(Protocol):
    """The functions that depend on Keras's backend."""

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        """Return a function that computes [output], in training with the gradients of the inputs and weights appended.

        Args:
            block: block or model.
            inputs: inputs of the block.
            cotangent: gradient of the output.
            mode: "inference" or "training".
            form: one of workers.FORMS of the backend.

        """

    def wait(self, results: Any) -> None:
        """Wait until these results are computed."""

    def clear(self) -> None:
        """Free the code that the backend has compiled."""


def call_arguments(block: Any, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return the positional arguments for the inputs: separate ones for a block, one list for a model."""
    from attzoo.ops.keras import keras

    return (list(inputs),) if isinstance(block, keras.Model) else tuple(inputs)


@dataclass(frozen=True)
class TensorFlow:
    """Keras on TensorFlow."""

    device: str

    def __post_init__(self) -> None:
        import tensorflow as tf

        check_device(self.device, len(tf.config.list_physical_devices("GPU")) > 0)

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        """Return the function described in `Backend.call`."""
        import tensorflow as tf

        weights = [variable.value for variable in block.trainable_weights]

        def inference(inputs: Any, cotangent: Any) -> Any:
            """Return the list of the output in inference."""
            return [block(*call_arguments(block, inputs), training=False)]

        def training(inputs: Any, cotangent: Any) -> Any:
            """Return the output and the gradients of inputs and weights."""
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = block(*call_arguments(block, inputs), training=True)
            return [y, *tape.gradient(y, [*inputs, *weights], output_gradients=cotangent)]

        step = {"inference": inference, "training": training}[mode]
        if form != "eager":
            step = tf.function(step, jit_compile=form == "jit")
        return partial(step, inputs, cotangent)

    def wait(self, results: Any) -> None:
        """Wait until these results are computed."""
        if self.device == "cuda":
            import tensorflow as tf

            tf.test.experimental.sync_devices()

    def clear(self) -> None:
        """Do nothing: traced functions are freed with the references to them."""


@dataclass(frozen=True)
class Jax:
    """Keras on JAX."""

    device: str

    def __post_init__(self) -> None:
        import jax

        check_device(self.device, jax.default_backend() == "gpu")

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        """Return the function described in `Backend.call`."""
        import jax

        def inference(weights: Any, state: Any, inputs: Any, cotangent: Any) -> Any:
            """Return the list of the output in inference, and the new values of the other variables."""
            y, state = block.stateless_call(weights, state, *call_arguments(block, inputs), training=False)
            return [y], state

        def training(weights: Any, state: Any, inputs: Any, cotangent: Any) -> Any:
            """Return the output with the gradients of inputs and weights, and the new values of the other variables."""
            def forward(inputs: Any, weights: Any) -> Any:
                """Return the output and the new values of the other variables."""
                return block.stateless_call(weights, state, *call_arguments(block, inputs), training=True)

            y, vjp, new_state = jax.vjp(forward, inputs, weights, has_aux=True)
            input_gradients, weight_gradients = vjp(cotangent)
            return [y, *input_gradients, *weight_gradients], new_state

        step: Any = {"inference": inference, "training": training}[mode]
        step = jax.jit(step) if form == "traced" else step
        weights = [variable.value for variable in block.trainable_variables]
        state = [variable.value for variable in block.non_trainable_variables]

        def call() -> Any:
            """Return the results of one step, and store the values of the other variables for the next."""
            nonlocal state
            results, state = step(weights, state, inputs, cotangent)
            if self.device == "cpu":
                self.wait(results)   # otherwise calls queue up
            return results

        return call

    def wait(self, results: Any) -> None:
        """Wait until these results are computed."""
        import jax

        jax.block_until_ready(list(results))   # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Free compiled code."""
        import jax

        jax.clear_caches()   # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Torch:
    """Keras on torch."""

    device: str

    def __post_init__(self) -> None:
        import torch

        check_device(self.device, torch.cuda.is_available())

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        """Return the function described in `Backend.call`."""
        import torch

        weights = [variable.value for variable in block.trainable_weights]

        def inference() -> Any:
            """Return the list of the output in inference."""
            with torch.no_grad():
                return [block(*call_arguments(block, inputs), training=False)]

        def training() -> Any:
            """Return the output and the gradients of inputs and weights."""
            leaves = [x.detach().requires_grad_() for x in inputs]
            y = block(*call_arguments(block, leaves), training=True)
            return [y.detach(), *torch.autograd.grad(y, [*leaves, *weights], cotangent)]

        return {"inference": inference, "training": training}[mode]

    def wait(self, results: Any) -> None:
        """Wait until these results are computed."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def clear(self) -> None:
        """Do nothing: there is no compiled code."""


CREATE: Final[dict[str, Callable[[str], Backend]]] = {"tensorflow": TensorFlow, "jax": Jax, "torch": Torch}


def check_device(device: str, has_cuda: bool) -> None:
    """Raise RuntimeError if the device is "cuda" and `has_cuda` is false."""
    if device == "cuda" and not has_cuda:
        raise RuntimeError("expected a CUDA device, got none that this backend can use; pass --device cpu")
