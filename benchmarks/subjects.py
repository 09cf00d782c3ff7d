"""What a case is about, made once: the block or network with its weights, its inputs, and what must come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

import attzoo
from attzoo.contract import Array

from .cases import Case, create
from .nets import ResNet50
from .plain import AttUNet, canonical

# Of the norm of what is wanted. In half precision a maximum that is rounded may lie elsewhere; on CUDA, convolutions
# and matrix products of float32 inputs may round them to 11 bits (TF32), as PyTorch's flags say. That moves inputs of
# the gate's relu across 0: with operands so rounded on a CPU, the gradient of its signal was 1.1e-2 off.
TOLERANCE: Final = {"float32": 2e-5, "TF32": 5e-3, "float16": 5e-2, "bfloat16": 2e-1}
DEPTH: Final = 100       # times more for a whole network, where rounding moves a few inputs of relus across 0,
LOOSEST: Final = 0.5     # but never more than this
SEED: Final = 0
FEW: Final = 2           # samples on which the float64 body is itself held to the NumPy meaning, once,
CORNER: Final = 24       # and so many pixels of a volume's axes: with 96, NumPy took half a minute and 10 GB
HELD: set[Case] = set()   # where that was done
JITTERS: Final = 8       # draws of inputs moved by what rounding adds up to in a sum, as a part of the tolerance:
NUDGE: Final = 0.1       # 2e-6 in float32; a relu's input was so near to 0 that sums of 256 in another order turned it
TURNED: Final = 1e-2     # the most that relus which rounding turns, a few of thousands, explain


@dataclass(frozen=True)
class Subject:
    """A case with what every provider gets.

    ours: attzoo's module, float32 on the CPU. sets: of inputs, on the device, in the case's dtype and layout; the first
    of them is what providers are verified on. cotangents: gradients of the outputs, one for each set; none for a
    network, whose loss is the mean square of its output.
    """

    case: Case
    ours: nn.Module
    sets: Sequence[Sequence[Tensor]]
    cotangents: Sequence[Tensor]

    @property
    def arrays(self) -> dict[str, Array]:
        """The block's arrays, by canonical name."""
        return attzoo.weights(self.ours)

    @property
    def dtype(self) -> torch.dtype:
        """The case's, as torch names it."""
        return self.sets[0][0].dtype

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self.sets[0][0].device

    @property
    def tolerance(self) -> float:
        """The largest deviation that is rounding."""
        exact = self.case.dtype != "float32" or self.device.type != "cuda" or not torch.backends.cudnn.allow_tf32
        return min(LOOSEST, TOLERANCE[self.case.dtype if exact else "TF32"] * (DEPTH if self.case.network else 1))


def subject(case: Case, device: str, count: Callable[[int], int] = lambda size: 1) -> Subject:
    """The case on this device, with `count(bytes of a set)` sets of inputs."""
    torch.manual_seed(SEED)
    ours = network(case) if case.network else create(case, "torch")
    if not case.network:
        attzoo.load_weights(ours, draw(ours.spec, np.random.default_rng(SEED)))
    dtype = getattr(torch, case.dtype)
    size = case.width * sum(map(prod, case.shapes))

    def tensor(shape: Sequence[int]) -> Tensor:
        return laid(torch.randn(shape, device=device, dtype=dtype), case.layout)

    sets = [[tensor(shape) for shape in case.shapes] for _ in range(count(size))]
    return Subject(case, ours, sets, [] if case.network else [tensor(case.shapes[0]) for _ in sets])


def network(case: Case) -> nn.Module:
    """The U-Net of a case, or ResNet-50 with attzoo's blocks; running statistics come from data."""
    if case.network == "unet":
        skip = None if case.block == "none" else case.block
        made: nn.Module = attzoo.create(
            "unet", case.shapes[0][1], 1, backend="torch", variant=case.variant, skip=skip
        )
    elif case.block == "none":
        made = ResNet50()
    else:
        made = ResNet50(lambda channels: attzoo.create(case.block, channels, backend="torch", variant=case.variant))
    x = torch.randn(2, *case.shapes[0][1:])
    with torch.no_grad():
        for _ in range(2):
            made.train()(x)
    return made


def draw(spec: Any, rng: np.random.Generator) -> dict[str, Array]:
    """Float32 arrays for a block: normal, of variance 1 / fan-in; variances between 1/2 and 3/2."""
    arrays = {}
    for name, weight in spec.weights.items():
        fan_in = max(1, prod(weight.shape[1:]))
        even = name.endswith("var")
        array = rng.uniform(0.5, 1.5, weight.shape) if even else rng.normal(0, fan_in**-0.5, weight.shape)
        arrays[name] = array.astype("float32")
    return arrays


def laid(x: Tensor, layout: str) -> Tensor:
    """The same numbers, of the same shape (N, C, *S), in this layout in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels last" else x.contiguous()


# ---- what must come out ----------------------------------------------------------------------------------------------


def run(module: nn.Module, mode: str, inputs: Sequence[Tensor], cotangent: Tensor | None) -> list[Tensor]:
    """The output; unless in inference, and the gradients of sum(output * cotangent) for inputs and parameters.

    Without a cotangent the loss is the output's mean square.
    """
    if mode == "inference":
        with torch.no_grad():
            return [module(*inputs)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = module(*leaves)
    if cotangent is None:
        y = y.square().mean()
    gradients = torch.autograd.grad(y, [*leaves, *module.parameters()], cotangent)
    return [y.detach(), *gradients]


def wanted(it: Subject) -> list[Tensor]:
    """What `run` gives on the first set, in float64 on the device; of gradients those of the inputs.

    The body that says so is first held to the NumPy meaning, on a few of the samples. A network is asked with running
    statistics: with a batch's, rounding grows in every norm, and shows nothing that its parts do not.
    """
    inputs = [x.double() for x in it.sets[0]]
    wide = _wide(it)
    alike = replace(it.case, dtype="float64", layout="", mode="training" if wide.training else "inference")
    if not it.case.network and alike not in HELD:
        _hold(deepcopy(wide), [few(x) for x in inputs])
        HELD.add(alike)
    return _run(it, wide, inputs)


def slack(it: Subject, meant: Sequence[Tensor]) -> float:
    """How far what is wanted moves when the inputs do, by a rounding: a relu's may be as near to 0 as that."""
    wide, found = _wide(it), []
    for _ in range(JITTERS):
        inputs = [x * (1 + NUDGE * it.tolerance * torch.randn_like(x)) for x in map(Tensor.double, it.sets[0])]
        found.append(deviation(_run(it, wide, inputs), meant))
    return min(TURNED, 2 * max(found))   # twice, for these are draws


def _wide(it: Subject) -> nn.Module:
    """The body in float64, on the device, as the case's mode would have it."""
    wide = deepcopy(it.ours).to(it.device, torch.float64)
    return wide.train(it.case.mode != "inference" and not it.case.network)


def _run(it: Subject, wide: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output and, unless in inference, the inputs' gradients."""
    mode = "inference" if it.case.mode == "inference" else "training"
    cotangent = it.cotangents[0].double() if it.cotangents else None
    return run(wide, mode, inputs, cotangent)[: 1 + len(inputs)]


def few(x: Tensor) -> Tensor:
    """The first samples, and of volumes a corner: (N, C, *S) -> (n, C, *s)."""
    return x[:FEW] if x.ndim < 5 else x[:FEW, :, :CORNER, :CORNER, :CORNER]


def _hold(wide: nn.Module, inputs: Sequence[Tensor]) -> None:
    spec: Any = wide.spec
    weights = {name: array.astype("float64") for name, array in attzoo.weights(wide).items()}
    meant = torch.from_numpy(spec(*(x.cpu().numpy() for x in inputs), weights=weights, training=wide.training))
    off = deviation([run(wide, "inference", inputs, None)[0].cpu()], [meant])
    if not off < 1e-10:
        raise RuntimeError(f"expected the float64 body of {type(wide).__name__} to be its meaning, got {off:.1e} off")


def deviation(got: Sequence[Tensor], meant: Sequence[Tensor]) -> float:
    """The largest |got - meant| / |meant|, norms of whole tensors, of all that are meant. NaN where one is."""
    offs = [float((g.double() - m).norm() / m.norm()) for g, m in zip(got, meant, strict=False)]
    return max(offs, key=lambda off: (off != off, off))


# ---- the U-Net in plain torch ----------------------------------------------------------------------------------------


def plain_unet(ours: nn.Module, inputs: int) -> nn.Module:
    """The same network as `leejunhyun`, with the same arrays, in plain torch.nn."""
    plain = AttUNet(inputs)
    arrays = attzoo.weights(ours)
    state: Mapping[str, Tensor] = plain.state_dict()
    for name, path in canonical(plain).items():
        state[path].copy_(torch.from_numpy(arrays[name]).reshape(state[path].shape))
    return plain
