"""A process with one of Keras's backends, which does as `workers.Worker` asks until that is gone."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import Any, Final, Protocol

import numpy as np

from attzoo.adapters import Run
from attzoo.contract import Array, choice, triton_first

from .cases import BOTH
from .timer import KEPT, Call
from .workers import FORMS, Job


def serve(link: Connection[Any, Any], bench: Callable[[], Any]) -> None:
    """Answer requests (seconds allowed, method, arguments) with (True, result) or (False, what was raised)."""
    made = None
    with suppress(EOFError):   # whoever asked is gone
        while True:
            limit, name, arguments = link.recv()
            signal.alarm(limit)   # without a handler it ends the process, also one that is stuck outside of Python
            try:
                made = made or bench()
                answer = True, getattr(made, name)(*arguments)
            except Exception as err:
                answer = False, f"{type(err).__name__}: {err}"
            signal.alarm(0)
            link.send(answer)


class Bench:
    """What is prepared, by key, and how it is timed."""

    def __init__(self, backend: str, device: str) -> None:
        triton_first()
        self.backend: Backend = MAKE[backend](device)
        self.forms = FORMS[backend]
        # CPU time of the whole process, not of this thread: TensorFlow runs a traced function in a thread of its pool,
        # JAX everything, and this thread waits. With one thread in each pool the two together never took more than the
        # time that passed, and a process that does nothing takes 0.1 ms of CPU time a second, so nothing is deducted.
        self.clock = process_time if device == "cpu" else perf_counter
        self.calls: dict[str, Call] = {}

    def flags(self) -> dict[str, str]:
        """What bears on speed and is not the same everywhere."""
        names = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "TF_XLA_FLAGS")
        return {name: os.environ.get(name, "not set") for name in names}

    def prepare(self, key: str, job: Job) -> Run:
        """Make what a job asks for, run it once, keep it under `key`; what came of it."""
        from attzoo.adapters.keras import to_tensor
        from attzoo.ops.keras import keras

        choice("form", job.form, self.forms)
        choice("mode", job.mode, BOTH)
        keras.config.set_image_data_format(job.layout.replace(" ", "_"))
        keras.config.set_dtype_policy(job.dtype)
        block = LIBRARIES[job.library](job)
        inputs = [to_tensor(x, block) for x in job.inputs]
        call = self.backend.call(block, inputs, to_tensor(job.cotangent, block), job.mode, job.form)
        run = canonical(call(), block, len(inputs))
        self.calls[key] = call
        gc.collect()
        gc.freeze()   # what a framework holds is many objects: to look through them all takes longer than a turn
        return run

    def time(self, key: str, repeats: int) -> float:
        """Seconds of one call, on the average of so many."""
        return seconds(self.calls[key], repeats, self.clock, self.backend.wait)

    def forget(self) -> None:
        """Free what was prepared, and what the backend compiled for it."""
        from attzoo.ops.keras import keras

        gc.unfreeze()
        self.calls.clear()
        keras.utils.clear_session(free_memory=False)
        self.backend.clear()
        gc.collect()


def seconds(call: Call, repeats: int, clock: Callable[[], float], wait: Callable[[Any], object]) -> float:
    """Seconds per call until all results are there; the last are kept alive, as in `timer.interleave`."""
    kept: deque[Any] = deque(maxlen=KEPT)
    gc.disable()
    try:
        began = clock()
        for _ in range(repeats):
            kept.append(call())
        wait(kept)
        return (clock() - began) / repeats
    finally:
        gc.enable()


# ---- blocks ----------------------------------------------------------------------------------------------------------


def attzoos(job: Job) -> Any:
    """The block of attzoo for a job."""
    import attzoo
    from attzoo.adapters.keras import shapes

    block = attzoo.get(job.block, backend="keras")(**job.config)
    block.build(*((None, *shape) for shape in shapes(block)))
    attzoo.load_weights(block, job.arrays)
    return block


def plain(job: Job) -> Any:
    """The plain layers for a job, a model."""
    import attzoo

    from . import plain_keras

    spec = attzoo.get(job.block, backend="numpy")(**job.config)
    model = plain_keras.build(job.block, spec, [x.shape for x in job.inputs])
    plain_keras.load(model, job.arrays)
    return model


LIBRARIES: Final = {"attzoo": attzoos, "plain": plain}


def ask(block: Any, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Inputs as a block takes them, one by one, or a model, in a list."""
    from attzoo.ops.keras import keras

    return (list(inputs),) if isinstance(block, keras.Model) else tuple(inputs)


def canonical(results: Sequence[Any], block: Any, inputs: int) -> Run:
    """Output, and in training gradients for inputs and weights, as float64 arrays in canonical layout."""
    from attzoo.adapters.keras import to_array

    y, *of_inputs = [to_array(tensor, block).astype("float64") for tensor in results[: 1 + inputs]]
    of_weights = dict(zip(map(id, block.trainable_weights), results[1 + inputs :], strict=False))   # none in inference
    return Run(y, tuple(of_inputs), {
        name: weight_array(of_weights[id(variable)], variable).reshape(weight.shape)
        for name, weight in block.spec.weights.items()
        if id(variable := find(block, name)) in of_weights
    })   # fmt: skip


def find(block: Any, name: str) -> Any:
    """The variable that holds a canonical array."""
    from attzoo.ops import keras as ops

    from . import plain_keras

    return (plain_keras if isinstance(block, ops.keras.Model) else ops).find(block, name)


def weight_array(tensor: Any, variable: Any) -> Array:
    """What belongs to a variable, such as its gradient, in float64; of a kernel of Keras, (*k, I, O), as (O, I, *k)."""
    from attzoo.ops.keras import keras

    array = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")).astype("float64")
    return np.moveaxis(array, (-1, -2), (0, 1)) if variable.name == "kernel" else array


# ---- backends --------------------------------------------------------------------------------------------------------


class Backend(Protocol):
    """How a backend runs a block."""

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        """A pass, as a function that returns the output and in training the gradients of inputs and weights."""

    def wait(self, results: Any) -> None:
        """Return when these are computed."""

    def clear(self) -> None:
        """Free what was compiled."""


@dataclass(frozen=True)
class TensorFlow:
    """Keras on TensorFlow."""

    device: str

    def __post_init__(self) -> None:
        import tensorflow as tf

        expect(self.device, len(tf.config.list_physical_devices("GPU")))

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        import tensorflow as tf

        weights = [variable.value for variable in block.trainable_weights]

        def inference(inputs: Any, cotangent: Any) -> Any:
            return [block(*ask(block, inputs), training=False)]

        def training(inputs: Any, cotangent: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = block(*ask(block, inputs), training=True)
            return [y, *tape.gradient(y, [*inputs, *weights], output_gradients=cotangent)]

        step = {"inference": inference, "training": training}[mode]
        if form != "eager":
            step = tf.function(step, jit_compile=form == "jit")
        return partial(step, inputs, cotangent)

    def wait(self, results: Any) -> None:
        if self.device == "cuda":
            import tensorflow as tf

            tf.test.experimental.sync_devices()

    def clear(self) -> None:
        """Do nothing: a function goes with what refers to it."""


@dataclass(frozen=True)
class Jax:
    """Keras on JAX."""

    device: str

    def __post_init__(self) -> None:
        import jax

        expect(self.device, jax.default_backend() == "gpu")

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        import jax

        def inference(weights: Any, others: Any, inputs: Any, cotangent: Any) -> Any:
            y, others = block.stateless_call(weights, others, *ask(block, inputs), training=False)
            return [y], others

        def training(weights: Any, others: Any, inputs: Any, cotangent: Any) -> Any:
            def forward(inputs: Any, weights: Any) -> Any:
                return block.stateless_call(weights, others, *ask(block, inputs), training=True)

            y, pull, moved = jax.vjp(forward, inputs, weights, has_aux=True)
            of_inputs, of_weights = pull(cotangent)
            return [y, *of_inputs, *of_weights], moved

        step: Any = {"inference": inference, "training": training}[mode]
        step = jax.jit(step) if form == "traced" else step
        weights = [variable.value for variable in block.trainable_variables]
        others = [variable.value for variable in block.non_trainable_variables]

        def call() -> Any:
            nonlocal others
            results, others = step(weights, others, inputs, cotangent)
            if self.device == "cpu":
                self.wait(results)   # lest calls pile up
            return results

        return call

    def wait(self, results: Any) -> None:
        import jax

        jax.block_until_ready(list(results))   # type: ignore[no-untyped-call]

    def clear(self) -> None:
        import jax

        jax.clear_caches()   # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Torch:
    """Keras on torch."""

    device: str

    def __post_init__(self) -> None:
        import torch

        expect(self.device, torch.cuda.is_available())

    def call(self, block: Any, inputs: Sequence[Any], cotangent: Any, mode: str, form: str) -> Call:
        import torch

        weights = [variable.value for variable in block.trainable_weights]

        def inference() -> Any:
            with torch.no_grad():
                return [block(*ask(block, inputs), training=False)]

        def training() -> Any:
            taken = [x.detach().requires_grad_() for x in inputs]
            y = block(*ask(block, taken), training=True)
            return [y.detach(), *torch.autograd.grad(y, [*taken, *weights], cotangent)]

        return {"inference": inference, "training": training}[mode]

    def wait(self, results: Any) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def clear(self) -> None:
        """Do nothing: nothing is compiled."""


MAKE: Final[dict[str, Callable[[str], Backend]]] = {"tensorflow": TensorFlow, "jax": Jax, "torch": Torch}


def expect(device: str, found: Any) -> None:
    """Raise RuntimeError where CUDA is wanted and no such device was found."""
    if device == "cuda" and not found:
        raise RuntimeError("expected a CUDA device, got none that this backend can use")


if __name__ == "__main__":
    _backend, _device, _descriptor = sys.argv[1:]
    serve(Connection(int(_descriptor)), partial(Bench, _backend, _device))
