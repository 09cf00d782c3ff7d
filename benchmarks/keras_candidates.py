"""Time attzoo's Keras layers and plain Keras layers, each Keras backend in its own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from typing import Final

import torch
from torch import Tensor

from attzoo.contract import Array

from . import keras_blocks
from .cases import spec_of
from .runs import Provider
from .subjects import Subject
from .timer import Cpu, Turn
from .workers import FORMS, Job, Worker, available

LIBRARIES: Final = ("attzoo", "plain")   # plain: the same block written in Keras's own layers


@dataclass(frozen=True)
class KerasCandidate:
    """A library's layer on one Keras backend in one form, as `measure.Candidate`.

    Attributes:
        provider: library, backend and form.
        subject: the case with its tensors.
        worker: the process that runs the backend.
        job: what the process computes.

    """

    provider: Provider
    subject: Subject
    worker: Worker
    job: Job

    @property
    def family(self) -> str:
        """Return the backend and the form, within which the plain layer is the reference of attzoo's layer."""
        return f"{self.provider.backend} {self.provider.form}"

    def twin(self) -> KerasCandidate:
        """Return a copy with another layer, by which the provider is also timed against itself."""
        control = replace(self, provider=replace(self.provider, library=f"{self.provider.library} again"))
        control.outputs()
        return control

    def outputs(self) -> list[Tensor]:
        """Return the output and, in training, the input gradients. Raises Failed."""
        run = self.worker.prepare(str(self.provider), self.job)
        return [torch.from_numpy(array).to(self.subject.device) for array in (run.output, *run.input_gradients)]

    def clocks(self) -> tuple[str, ...]:
        """Return "cpu", the CPU time of the process, or on CUDA "calls"."""
        return ("cpu",) if self.subject.device.type == "cpu" else ("calls",)

    def turn(self, clock: str, cpu: Cpu) -> Turn:
        """Return a turn that makes the calls in the process. The arguments `clock` and `cpu` are ignored."""
        return lambda repeats: self.worker.time(str(self.provider), repeats)

    def memory(self) -> tuple[None, None]:
        """Return None, None: the memory in the process is unknown."""
        return None, None

    def traffic(self) -> None:
        """Return None: the operators in the process are unknown."""


@contextmanager
def open_keras_candidates(device: str, absent: set[str]) -> Iterator[Callable[[Subject], Iterator[KerasCandidate]]]:
    """Provide a function that yields the Keras candidates of a subject, if its case has the form "keras".

    A process starts when its first candidate is prepared, and ends with the context.

    Args:
        device: "cpu" or "cuda".
        absent: a set to which the names of packages that are not installed are added.

    """
    backends = available()
    absent |= {"keras"} if find_spec("keras") is None else {name for name, missing in backends.items() if missing}
    with ExitStack() as stack:
        workers = [Worker(name, device) for name, missing in backends.items() if not missing]
        for worker in workers:
            stack.callback(worker.close)

        def keras_candidates(subject: Subject) -> Iterator[KerasCandidate]:
            """Yield the candidates of attzoo's and the plain layer on every installed backend."""
            if "keras" not in subject.case.forms:
                return
            template = keras_job(subject, LIBRARIES[0], "eager")
            libraries = [name for name in LIBRARIES if name != "plain" or keras_blocks.has(subject.case.block)]
            for worker in workers:
                worker.forget()
                for form, library in product(FORMS[worker.backend], libraries):
                    backend = "keras-torch" if worker.backend == "torch" else worker.backend
                    job = replace(template, library=library, form=form)
                    yield KerasCandidate(Provider(library, backend, form), subject, worker, job)

        yield keras_candidates


def keras_job(subject: Subject, library: str, form: str) -> Job:
    """Return the job for a process: the subject's case on its first set of inputs, by `library`'s layer in `form`."""
    case, inputs = subject.case, [to_float32(x) for x in subject.sets[0]]
    cotangent = to_float32(subject.cotangents[0])
    values = library, case.block, spec_of(case).config(), subject.arrays, inputs, cotangent
    return Job(*values, case.dtype, case.layout, case.mode, form)


def to_float32(x: Tensor) -> Array:
    """Return a tensor as a float32 array: NumPy has no bfloat16."""
    return x.float().cpu().numpy()
