"""Keras's backends, each in a process of its own, for a process has one: the side that asks, free of any framework.

    with Worker("tensorflow") as worker:
        run = worker.prepare("ours", job)       # a Run: outputs and gradients, to be held against the float64 meaning
        seconds = worker.time("ours", repeats)  # of one call

`worker.py` is the side that answers.
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

from .pages import KEPT_PAGES

BACKENDS: Final = ("tensorflow", "jax", "torch")
FORMS: Final = {"tensorflow": ("eager", "traced", "jit"), "jax": ("eager", "traced"), "torch": ("eager",)}
CHILD: Final = ("-m", "benchmarks.worker")
ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",   # torch's, and oneDNN's
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "NPROC": "1",             # XLA's under JAX; under TensorFlow it computes in TensorFlow's
}


@dataclass(frozen=True)
class Job:
    """One thing to compute in Keras.

    library: "attzoo", or "plain" for the same written directly in Keras. config: all of the spec's arguments.
    arrays: by canonical name. inputs, cotangent: channels first. dtype, layout: as in `cases`.
    mode: one of cases.BOTH. form: one of FORMS; "traced" is tf.function or jax.jit, "jit" with
    jit_compile=True.
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
    """A process of Keras could not do what it was asked, and why."""


def available() -> dict[str, str | None]:
    """Backend -> None where it can be used, else what is missing. Imports none of them."""
    missing = {name: [part for part in ("keras", name) if find_spec(part) is None] for name in BACKENDS}
    return {name: f"not installed: {', '.join(parts)}" if parts else None for name, parts in missing.items()}


class Worker:
    """A process with Keras on one backend, that lives until `close`, or the end of a `with`.

    device: "cpu", where it has one thread, or "cuda". limit: seconds for any one answer. A process that takes longer
    ends itself, and it ends with the one that started it. A new one takes the place of one that ended when something
    is prepared next; what the old one had prepared is lost.
    """

    def __init__(self, backend: str, device: str = "cpu", limit: float = 300.0) -> None:
        self.backend, self.device, self.limit = backend, device, limit
        self.process: subprocess.Popen[bytes] | None = None
        self.flags: Mapping[str, str] = {}

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, unless it runs. Raises Failed where it cannot compute on that device."""
        if self.process:
            return
        self.link, theirs = Pipe()
        self.errors = tempfile.TemporaryFile()   # noqa: SIM115   # not a pipe, which would have to be emptied
        words = [sys.executable, *CHILD, self.backend, self.device, str(theirs.fileno())]
        self.process = subprocess.Popen(
            words,
            env=os.environ | environment(self.backend, self.device),
            cwd=Path(__file__).parent.parent,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.errors,
            stderr=self.errors,
        )
        theirs.close()
        try:
            self.flags = self._ask("flags")
        except Failed:
            self.close()
            raise

    def close(self) -> None:
        """End the process. A closed worker may be started again."""
        if self.process:
            self._end(5)

    def prepare(self, key: str, job: Job) -> Run:
        """Make a block and what it takes, run it once, keep it under `key`; what came of it, float64, channels first.

        In inference the gradients are empty. Raises Failed.
        """
        self.start()
        return cast(Run, self._ask("prepare", key, job))

    def time(self, key: str, repeats: int) -> float:
        """Seconds of one call of what was prepared under `key`: of CPU time of the process, or on CUDA of the clock.

        Raises Failed.
        """
        if not self.process:
            raise Failed(f"{key} was lost when its process, Keras on {self.backend}, ended")
        return cast(float, self._ask("time", key, repeats))

    def forget(self) -> None:
        """Free everything that was prepared."""
        if self.process:
            self._ask("forget")

    def _ask(self, name: str, *arguments: object) -> Any:
        try:
            self.link.send((ceil(self.limit), name, arguments))
            done, answer = self.link.recv()
        except (EOFError, OSError):
            raise Failed(f"Keras on {self.backend} {self._end(5)}") from None
        except BaseException:   # an answer that nobody took would be taken for the next one
            self._end(0)
            raise
        if not done:
            raise Failed(answer)
        return answer

    def _end(self, patience: float) -> str:
        """End the process, after that many seconds by force, and how it ended."""
        process, self.process = self.process, None
        assert process is not None
        self.link.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)   # it ends by itself when it finds nobody there, unless it is busy
        process.kill()
        code = process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()[-3:]
        self.errors.close()
        if code == -signal.SIGALRM:
            return f"took more than {self.limit:g} s"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return ": ".join([how, *([" / ".join(said)] if said else [])])


def environment(backend: str, device: str) -> dict[str, str]:
    """Variables that a process of Keras must have before it begins: frameworks read them when they are loaded."""
    shared = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    if device == "cuda":
        return shared | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    return shared | ONE_THREAD | KEPT_PAGES | {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
