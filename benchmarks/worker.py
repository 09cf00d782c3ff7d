"""The server process for `workers.Worker`: prepares and times Keras blocks on one backend until the client ends."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import Any, Final

import numpy as np

from attzoo.adapters import Run
from attzoo.contract import Array, choice, triton_first

from .cases import BOTH
from .keras_backends import CREATE, Backend
from .timer import KEPT_RESULTS, Call
from .workers import FORMS, Job


def serve(connection: Connection[Any, Any], bench: Callable[[], Any]) -> None:
    """Answer requests (limit in seconds, method, arguments) with (True, result) or (False, text of the exception).

    Args:
        connection: connection to the client.
        bench: creates the object with the methods, at the first request.

    """
    server = None
    with suppress(EOFError):   # the client has ended
        while True:
            limit, method, arguments = connection.recv()
            signal.alarm(limit)   # after `limit` seconds SIGALRM ends the process, even if it hangs outside Python
            try:
                server = server or bench()
                response = True, getattr(server, method)(*arguments)
            except Exception as err:
                response = False, f"{type(err).__name__}: {err}"
            signal.alarm(0)
            connection.send(response)


class Bench:
    """Prepare and time jobs. The public methods answer the requests of `workers.Worker`."""

    def __init__(self, backend: str, device: str) -> None:
        triton_first()
        self.backend: Backend = CREATE[backend](device)
        self.forms = FORMS[backend]
        # CPU time of the process, not of this thread: in other threads, TensorFlow runs traced functions, and JAX
        # everything, while this thread waits. With one thread per pool, CPU time never exceeded wall time. An idle
        # process takes 0.1 ms of CPU time per second, which is not subtracted.
        self.clock = process_time if device == "cpu" else perf_counter
        self.calls: dict[str, Call] = {}

    def flags(self) -> dict[str, str]:
        """Return the environment variables that affect speed."""
        names = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "TF_XLA_FLAGS")
        return {name: os.environ.get(name, "not set") for name in names}

    def prepare(self, key: str, job: Job) -> Run:
        """Create the block and inputs of a job, compute it once, save it under `key`, and return its results."""
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
        gc.freeze()   # frameworks hold many objects: a collection would take longer than a turn
        return run

    def time(self, key: str, repeats: int) -> float:
        """Return the mean seconds per call of a job over `repeats` calls."""
        return seconds(self.calls[key], repeats, self.clock, self.backend.wait)

    def forget(self) -> None:
        """Free all jobs and the code compiled for them."""
        from attzoo.ops.keras import keras

        gc.unfreeze()
        self.calls.clear()
        keras.utils.clear_session(free_memory=False)
        self.backend.clear()
        gc.collect()


def seconds(call: Call, repeats: int, clock: Callable[[], float], wait: Callable[[Any], object]) -> float:
    """Return the seconds per call until all results are computed; the last results stay in memory, as in `timer.Cpu`.

    Args:
        call: the call to time.
        repeats: number of calls.
        clock: returns the time in seconds.
        wait: waits until the results in its argument are computed.

    """
    results: deque[Any] = deque(maxlen=KEPT_RESULTS)
    gc.disable()
    try:
        start_time = clock()
        for _ in range(repeats):
            results.append(call())
        wait(results)
        return (clock() - start_time) / repeats
    finally:
        gc.enable()


# ---- blocks ----------------------------------------------------------------------------------------------------------


def attzoo_block(job: Job) -> Any:
    """Create attzoo's Keras block of a job."""
    import attzoo
    from attzoo.adapters.keras import shapes

    block = attzoo.get(job.block, backend="keras")(**job.config)
    block.build(*((None, *shape) for shape in shapes(block)))
    attzoo.load_weights(block, job.arrays)
    return block


def plain_model(job: Job) -> Any:
    """Create the model of plain Keras layers of a job."""
    import attzoo

    from . import plain_keras

    spec = attzoo.get(job.block, backend="numpy")(**job.config)
    model = plain_keras.build(job.block, spec, [x.shape for x in job.inputs])
    plain_keras.load(model, job.arrays)
    return model


LIBRARIES: Final = {"attzoo": attzoo_block, "plain": plain_model}


def canonical(results: Sequence[Any], block: Any, inputs: int) -> Run:
    """Convert the results of a pass to float64 arrays in canonical layout.

    Args:
        results: the output and, in training, the gradients of the inputs and of the trainable weights.
        block: block or model.
        inputs: number of inputs.

    """
    from attzoo.adapters.keras import to_array

    y, *input_gradients = [to_array(tensor, block).astype("float64") for tensor in results[: 1 + inputs]]
    gradients = dict(zip(map(id, block.trainable_weights), results[1 + inputs :], strict=False))   # none in inference
    return Run(y, tuple(input_gradients), {
        name: weight_array(gradients[id(variable)], variable).reshape(weight.shape)
        for name, weight in block.spec.weights.items()
        if id(variable := find(block, name)) in gradients
    })   # fmt: skip


def find(block: Any, name: str) -> Any:
    """Return the variable of a block or model that holds the weight of this canonical name."""
    from attzoo.ops import keras as ops

    from . import plain_keras

    return (plain_keras if isinstance(block, ops.keras.Model) else ops).find(block, name)


def weight_array(tensor: Any, variable: Any) -> Array:
    """Return a tensor of a variable's shape, such as its gradient, in float64; a kernel (*k, I, O) as (O, I, *k)."""
    from attzoo.ops.keras import keras

    array = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")).astype("float64")
    return np.moveaxis(array, (-1, -2), (0, 1)) if variable.name == "kernel" else array


if __name__ == "__main__":
    _backend, _device, _descriptor = sys.argv[1:]
    serve(Connection(int(_descriptor)), partial(Bench, _backend, _device))
