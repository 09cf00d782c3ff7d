"""Run Keras in separate processes, one for each backend, because a process can have only one Keras backend.

    with Worker("tensorflow") as worker:
        run = worker.prepare("ours", job)       # a Run: output and gradients
        seconds = worker.time("ours", repeats)  # seconds per call

This module is the client and imports no framework. worker.py is the server, which runs in the process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Final, cast

from attzoo.adapters import Run
from attzoo.contract import Array

from .pages import MALLOC_VARIABLES

BACKENDS: Final = ("tensorflow", "jax", "torch")
FORMS: Final = {"tensorflow": ("eager", "traced", "jit"), "jax": ("eager", "traced"), "torch": ("eager",)}
CHILD: Final = ("-m", "benchmarks.worker")
ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",   # of torch and oneDNN
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "NPROC": "1",             # of XLA under JAX; under TensorFlow, XLA uses TensorFlow's threads
}


@dataclass(frozen=True)
class Job:
    """A block, weights and inputs to compute in Keras.

    Attributes:
        library: "attzoo", or "plain" for the block in Keras's own layers.
        block: name of the block.
        config: all arguments of the block's spec.
        arrays: weights by canonical name.
        inputs: inputs, channels first.
        cotangent: gradient of the output, channels first.
        dtype: one of cases.DTYPES.
        layout: one of cases.LAYOUTS.
        mode: one of cases.BOTH.
        form: one of FORMS; "traced" is tf.function or jax.jit, "jit" is tf.function(jit_compile=True).

    """

    library: str
    block: str
    config: Mapping[str, Any]
    arrays: Mapping[str, Array]
    inputs: Sequence[Array]
    cotangent: Array
    dtype: str = "float32"
    layout: str = "channels last"
    mode: str = "inference"
    form: str = "traced"


class Failed(RuntimeError):
    """A request to a Keras process failed; the message has the reason."""


def available() -> dict[str, str | None]:
    """Return for each backend what is not installed, or None if it can be used. Does not import the backends."""
    missing = {name: [part for part in ("keras", name) if find_spec(part) is None] for name in BACKENDS}
    return {name: f"not installed: {', '.join(parts)}" if parts else None for name, parts in missing.items()}


class Worker:
    """A process with Keras on one backend, which runs until `close` or the end of a `with` statement.

    A process that exceeds the limit ends itself. It also ends with its parent process. After it ended, the next
    `prepare` starts a new one, without the jobs that the old one had prepared.

    Args:
        backend: one of BACKENDS.
        device: "cpu", with one thread, or "cuda".
        limit: limit in seconds for each request.

    """

    def __init__(self, backend: str, device: str = "cpu", limit: float = 300.0) -> None:
        self.backend, self.device, self.limit = backend, device, limit
        self.process: subprocess.Popen[bytes] | None = None
        self.flags: Mapping[str, str] = {}

    def __enter__(self) -> Worker:
        """Start the process."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process."""
        self.close()

    def start(self) -> None:
        """Start the process unless it is running. Raises Failed if the backend cannot use the device."""
        if self.process:
            return
        self.link, remote = Pipe()
        self.errors = tempfile.TemporaryFile()   # noqa: SIM115   # a pipe would block when full
        self.process = subprocess.Popen(
            [sys.executable, *CHILD, self.backend, self.device, str(remote.fileno())],
            env=os.environ | environment(self.backend, self.device),
            cwd=Path(__file__).parent.parent,
            pass_fds=[remote.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.errors,
            stderr=self.errors,
        )
        remote.close()
        try:
            self.flags = self._request("flags")
        except Failed:
            self.close()
            raise

    def close(self) -> None:
        """End the process. A closed worker may be started again."""
        if self.process:
            self._end(5)

    def prepare(self, key: str, job: Job) -> Run:
        """Create the block and inputs of a job, compute it once and save it under `key` for `time`.

        Returns:
            Output and gradients, float64, channels first; no gradients in inference.

        Raises:
            Failed: an exception was raised in the process, or the process ended.

        """
        self.start()
        return cast(Run, self._request("prepare", key, job))

    def time(self, key: str, repeats: int) -> float:
        """Call the job saved under `key` repeatedly; return the seconds per call, CPU time or on CUDA wall time.

        Raises Failed.
        """
        if not self.process:
            raise Failed(f"expected a process with {key}, got none: Keras on {self.backend} has ended; prepare again")
        return cast(float, self._request("time", key, repeats))

    def forget(self) -> None:
        """Free all jobs."""
        if self.process:
            self._request("forget")

    def _request(self, method: str, *arguments: object) -> Any:
        """Call a method of `worker.Bench` in the process and return its result. Raises Failed."""
        try:
            self.link.send((ceil(self.limit), method, arguments))
            succeeded, answer = self.link.recv()
        except (EOFError, OSError):
            raise Failed(f"expected an answer of Keras on {self.backend}, got none: it {self._end(5)}") from None
        except BaseException:   # else the next request would read the answer to this one
            self._end(0)
            raise
        if not succeeded:
            raise Failed(answer)
        return answer

    def _end(self, timeout: float) -> str:
        """Wait up to `timeout` seconds for the process to end, kill it otherwise, and return a text on how it ended."""
        process, self.process = self.process, None
        assert process is not None
        self.link.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout)   # an idle process ends when the connection is closed
        process.kill()
        code = process.wait()
        self.errors.seek(0)
        last_lines = self.errors.read().decode(errors="replace").strip().splitlines()[-3:]
        self.errors.close()
        if code == -signal.SIGALRM:
            return f"took more than {self.limit:g} s"
        ending_text = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return ": ".join([ending_text, *([" / ".join(last_lines)] if last_lines else [])])


def environment(backend: str, device: str) -> dict[str, str]:
    """Return the environment variables of a Keras process. Frameworks read them when they are imported."""
    shared = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    if device == "cuda":
        return shared | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    return shared | ONE_THREAD | MALLOC_VARIABLES | {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
