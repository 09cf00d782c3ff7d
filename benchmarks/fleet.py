"""Keras among those who compute a case: attzoo's layers and plain ones, on each backend, in processes of their own."""

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

LIBRARIES: Final = ("attzoo", "plain")   # plain: the same, written directly in Keras


@dataclass(frozen=True)
class KerasContender:
    """A library's layer on one backend in one form."""

    provider: Provider
    subject: Subject
    worker: Worker
    job: Job

    @property
    def family(self) -> str:
        """A plain layer is the reference of ours on the same backend in the same form."""
        return f"{self.provider.backend} {self.provider.form}"

    def twin(self) -> KerasContender:
        """The same once more, with a layer of its own."""
        twin = replace(self, provider=replace(self.provider, library=f"{self.provider.library} again"))
        twin.outputs()
        return twin

    def outputs(self) -> list[Tensor]:
        """Output, and in training the inputs' gradients. Raises Failed."""
        run = self.worker.prepare(str(self.provider), self.job)
        return [torch.from_numpy(array).to(self.subject.device) for array in (run.output, *run.input_gradients)]

    def clocks(self) -> tuple[str, ...]:
        """CPU time of its process, or on CUDA the time that calls take."""
        return ("cpu",) if self.subject.device.type == "cpu" else ("calls",)

    def turn(self, clock: str, cpu: Cpu) -> Turn:
        """Turns in its process."""
        return lambda repeats: self.worker.time(str(self.provider), repeats)

    def memory(self) -> tuple[None, None]:
        """Not known."""
        return None, None


@contextmanager
def fleet(device: str, absent: set[str]) -> Iterator[Callable[[Subject], Iterator[KerasContender]]]:
    """Inside, Keras's contenders of a subject that asks for them; processes begin when they are first needed.

    What is not installed, Keras or some of its backends, is added to `absent`.
    """
    backends = available()
    absent |= {"keras"} if find_spec("keras") is None else {name for name, missing in backends.items() if missing}
    with ExitStack() as stack:
        workers = [Worker(name, device) for name, missing in backends.items() if not missing]
        for worker in workers:
            stack.callback(worker.close)

        def of(it: Subject) -> Iterator[KerasContender]:
            if "keras" not in it.case.forms:
                return
            first = job(it, LIBRARIES[0], "eager")
            libraries = [name for name in LIBRARIES if name != "plain" or keras_blocks.has(it.case.block)]
            for worker in workers:
                worker.forget()
                for form, library in product(FORMS[worker.backend], libraries):
                    backend = "keras-torch" if worker.backend == "torch" else worker.backend
                    asked = replace(first, library=library, form=form)
                    yield KerasContender(Provider(library, backend, form), it, worker, asked)

        yield of


def job(it: Subject, library: str, form: str) -> Job:
    """What a process is asked to compute: the first of the sets, as numbers of the case's dtype."""
    case, inputs = it.case, [array(x) for x in it.sets[0]]
    config = spec_of(case).config()
    what = library, case.block, config, it.arrays, inputs, array(it.cotangents[0])
    return Job(*what, case.dtype, case.layout, case.mode, form)


def array(x: Tensor) -> Array:
    """A tensor in NumPy, which has no bfloat16."""
    return x.float().cpu().numpy()
