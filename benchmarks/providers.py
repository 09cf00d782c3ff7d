"""Providers of a case in torch: attzoo and the installed peers, eager and compiled, as calls to time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn

import attzoo
from attzoo.contract import Source
from attzoo.registry import sources

from . import cuda
from .cases import unet_gate
from .memory import operator_bytes, peak_bytes, saved_bytes
from .nets import Bottleneck
from .peers import build_peer
from .runs import FUSED, Provider
from .subjects import Subject, plain_unet, run, to_layout
from .timer import Call, Cpu, Turn

# Form -> options of torch.compile, and the layout of the inputs if it differs from the case's. Inductor may convert a
# channels-first input to channels last before a convolution. A user can choose the fastest of the three forms.
COMPILED: Final[dict[str, tuple[dict[str, Any], str | None]]] = {
    "compiled": ({}, None),
    "compiled, no layout": ({"layout_optimization": False}, None),
    "compiled, channels last": ({}, "channels last"),
}


@dataclass
class TorchCandidate:
    """A provider of a subject in torch.

    Attributes:
        provider: name of the provider.
        subject: the case with its tensors.
        build: returns the module, float32 on the CPU, with the subject's weights. Raises ModuleNotFoundError if its
            library is not installed.
        options: options of torch.compile; None for eager.
        layout: memory layout of the inputs; None for the case's.

    """

    provider: Provider
    subject: Subject
    build: Callable[[], nn.Module]
    options: dict[str, Any] | None = None
    layout: str | None = None

    @property
    def family(self) -> str:
        """Return "torch", because all providers in torch share one reference."""
        return "torch"

    def twin(self) -> TorchCandidate:
        """Return a copy with the library's name and "again", which builds another module. See `Candidate.twin`."""
        return replace(self, provider=replace(self.provider, library=f"{self.provider.library} again"))

    @cached_property
    def module(self) -> Any:
        """Return the module on the device, in the dtype and mode of the case, compiled if `options` is set."""
        subject = self.subject
        module = self.build().to(subject.device, subject.dtype).train(subject.case.mode != "inference")
        return module if self.options is None else torch.compile(module, dynamic=False, options=self.options)

    def inputs(self, number: int) -> list[Tensor]:
        """Return set `number` of the subject's inputs in this provider's layout."""
        return [to_layout(x, self.layout or self.subject.case.layout) for x in self.subject.sets[number]]

    def cotangent(self, number: int) -> Tensor | None:
        """Return the output's gradient for set `number` of the inputs; None for a network."""
        cotangents = self.subject.cotangents
        return to_layout(cotangents[number], self.layout or self.subject.case.layout) if cotangents else None

    def outputs(self) -> list[Tensor]:
        """Return the output and gradients to verify. Networks use running statistics."""
        training = self.module.training
        self.module.train(training and not self.subject.case.network)
        mode = "inference" if self.subject.case.mode == "inference" else "training"
        try:
            return run(self.module, mode, self.inputs(0), self.cotangent(0))
        finally:
            self.module.train(training)

    def calls(self) -> list[Call]:
        """Return the calls to time, one for each set of inputs."""
        numbers = range(len(self.subject.sets))
        return [self._call(self.inputs(i), self.cotangent(i)) for i in numbers]

    def _call(self, inputs: list[Tensor], cotangent: Tensor | None) -> Call:
        """Return the call to time for a set of inputs."""
        mode = self.subject.case.mode
        if mode == "training" and self.subject.case.network:
            return Step(self.module, inputs)
        if mode == "forward":
            leaves = [x.detach().requires_grad_() for x in inputs]
            return lambda: self.module(*leaves)
        if mode == "backward":
            return Backward(self.module, inputs, cotangent)
        return partial(run, self.module, mode, inputs, cotangent)

    def clocks(self) -> tuple[str, ...]:
        """Return "cpu", or on CUDA "graph" and "calls"; for networks on CUDA only "calls"."""
        if self.subject.device.type != "cuda":
            return ("cpu",)
        return ("calls",) if self.subject.case.network else ("graph", "calls")

    def turn(self, clock: str, cpu: Cpu) -> Turn:
        """Return a turn that makes the calls and measures their time by one of the clocks of `clocks`."""
        return clocked_by(clock, self.calls(), cpu)

    def memory(self) -> tuple[int | None, int | None]:
        """Return the saved and peak bytes of a training step; None for compiled modules and other modes."""
        if self.subject.case.mode != "training" or self.options is not None:
            return None, None
        return saved_bytes(self.module, self.inputs(0)), peak_bytes(self.calls()[0])

    def traffic(self) -> int | None:
        """Return the bytes that the operators of a call read and write; None for networks and other forms than eager.

        Compiled code and fused kernels are not operators of PyTorch.
        """
        if self.subject.case.network or self.provider.form != "eager":
            return None
        call = self.calls()[0]
        call()   # the first call in the mode "backward" runs the forward pass too
        return operator_bytes(call)


def clocked_by(clock: str, calls: Sequence[Call], cpu: Cpu) -> Turn:
    """Return a turn that makes the calls in rotation, one for each set of inputs, timed by a clock."""
    if clock == "cpu":
        return cpu.turn(calls[0])
    return cuda.replay_turn(calls) if clock == "graph" else cuda.call_turn(calls)


class Backward:
    """A call that runs the backward pass of a module. The first call runs the forward pass too, on the same stream."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], cotangent: Tensor | None) -> None:
        self.module, self.cotangent = module, cotangent
        self.leaves = [x.detach().requires_grad_() for x in inputs]
        self.y: Tensor | None = None

    def __call__(self) -> object:
        """Return the gradients of the inputs and the parameters."""
        if self.y is None:
            self.y = self.module(*self.leaves)
        leaves_and_parameters = [*self.leaves, *self.module.parameters()]
        return torch.autograd.grad(self.y, leaves_and_parameters, self.cotangent, retain_graph=True)


class Step:
    """A call that runs a training step of a network, with learning rate 0 so that the weights stay the same."""

    def __init__(self, module: nn.Module, inputs: list[Tensor]) -> None:
        self.module, self.inputs = module, inputs
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)

    def __call__(self) -> object:
        """Return the loss of the step."""
        self.optimizer.zero_grad()
        loss = self.module(*self.inputs).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class WithKernels(nn.Module):
    """An attzoo module that runs under `attzoo.kernels("triton")`, forward and backward.

    Creating it raises ModuleNotFoundError without Triton. Calling it raises RuntimeError if the kernels cannot run.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        import_module("triton")
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Any:
        """Return the output of the module, computed by the fused kernels."""
        with attzoo.kernels("triton"):
            return self.inner(*inputs)


def torch_candidates(subject: Subject) -> Iterator[TorchCandidate]:
    """Yield the torch candidates of the subject. The first peer is the reference."""
    has_no_block = subject.case.network == "resnet50" and subject.case.block == "none"
    yield TorchCandidate(Provider("plain" if has_no_block else "attzoo"), subject, lambda: deepcopy(subject.ours))
    if has_kernels(subject):
        yield TorchCandidate(FUSED, subject, lambda: WithKernels(deepcopy(subject.ours)))
    yield from network_candidates(subject) if subject.case.network else block_candidates(subject)


def has_kernels(subject: Subject) -> bool:
    """Whether the subject is on CUDA and its block has fused kernels."""
    block = subject.case.block
    return subject.device.type == "cuda" and block != "none" and attzoo.info(block).fused


def block_candidates(subject: Subject) -> Iterator[TorchCandidate]:
    """Yield the candidates of a block besides attzoo's eager one: peers, and compiled forms if the case has them."""
    builds: dict[str, Callable[[], nn.Module]] = {
        library: partial(build_peer, source, subject.ours.spec, subject.arrays)
        for library, source in peers(subject).items()
    }
    for library, build in builds.items():
        yield TorchCandidate(Provider(library), subject, build)
    compiled: dict[str, Callable[[], nn.Module]] = {}
    if "compiled" in subject.case.forms:
        compiled["attzoo"] = lambda: deepcopy(subject.ours)
    if subject.case.forms & {"compiled", "peer compiled"}:
        compiled |= dict(list(builds.items())[:1])
    for library, build in compiled.items():
        for form, (options, layout) in COMPILED.items():
            if layout != subject.case.layout:
                yield TorchCandidate(Provider(library, form=form), subject, build, options, layout)


def network_candidates(subject: Subject) -> Iterator[TorchCandidate]:
    """Yield the candidates of a network besides attzoo's eager one.

    For ResNet-50 they have the peers' blocks. For the U-Net they are the network in plain torch and, in inference,
    attzoo's with folded norms.
    """
    if subject.case.network == "unet" and subject.case.block == unet_gate():
        yield TorchCandidate(Provider("plain"), subject, lambda: plain_unet(subject.ours, subject.case.shapes[0][1]))
        if subject.case.mode == "inference":
            ours: Any = subject.ours
            folded = Provider("attzoo", form="fused")
            yield TorchCandidate(folded, subject, lambda: ours.fold_norms(), layout="channels last")
    if subject.case.network == "resnet50":
        for library, source in peers(subject).items():
            yield TorchCandidate(Provider(library), subject, partial(with_peer, subject.ours, source))


def peers(subject: Subject) -> dict[str, Source]:
    """Return the blocks of other libraries that compute the subject's variant for inputs of its rank, by library."""
    case, rank = subject.case, len(subject.case.shapes[0]) - 2
    library_sources = sources(case.block).values() if case.block != "none" else ()
    usable_sources = [source for source in library_sources if source.variant == case.variant and rank in source.ranks]
    return {source.library: source for source in usable_sources}


def with_peer(ours: nn.Module, source: Source) -> nn.Module:
    """Return a copy of `ours`, a ResNet-50, with a peer's blocks instead of attzoo's, with the same weights.

    source: the description of the peer's block.
    """
    net = deepcopy(ours)
    for part in net.modules():
        if isinstance(part, Bottleneck):
            block: Any = part.attention
            part.put(build_peer(source, block.spec, attzoo.weights(block)))
    return net
