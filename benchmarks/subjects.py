"""Create the module, weights and inputs of a case, and compute the expected outputs and gradients in float64."""

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

# Relative errors that rounding explains. In half precision, rounding can change which element is the maximum. On CUDA,
# convolutions and matrix products of float32 inputs may use TF32 (11 bits), as PyTorch's flags say. That changes the
# sign of some inputs of the gate's relu: with TF32 emulated on a CPU, the signal's gradient had an error of 1.1e-2.
TOLERANCE: Final = {"float32": 2e-5, "TF32": 5e-3, "float16": 5e-2, "bfloat16": 2e-1}
DEPTH: Final = 100       # factor for a whole network, where rounding changes the sign of a few relu inputs
LOOSEST: Final = 0.5     # upper bound of the tolerance
SEED: Final = 0
CHECKED_SAMPLES: Final = 2     # number of samples on which the float64 module is compared with the NumPy reference
CHECKED_SIZE: Final = 24       # voxels per axis of volumes in that comparison: with 96, NumPy took 30 s and 10 GB
CHECKED: set[Case] = set()   # cases whose float64 module was compared
DRAWS: Final = 8       # number of draws of perturbed inputs in `slack`
PERTURBATION: Final = 0.1      # perturbation / tolerance: 2e-6 in float32, the rounding error of a sum of 256 numbers
MAX_SLACK: Final = 1e-2     # largest error that relu inputs with a changed sign, a few of thousands, explain


@dataclass(frozen=True)
class Subject:
    """A case with the module and tensors that all providers share.

    Attributes:
        case: the case.
        ours: attzoo's module, float32 on the CPU.
        sets: sets of inputs, on the device, in the case's dtype and layout. Providers are verified on the first.
        cotangents: gradients of the outputs, one for each set; empty for a network, whose loss is the mean square of
            its output.

    """

    case: Case
    ours: nn.Module
    sets: Sequence[Sequence[Tensor]]
    cotangents: Sequence[Tensor]

    @property
    def arrays(self) -> dict[str, Array]:
        """Return the module's weights by canonical name."""
        return attzoo.weights(self.ours)

    @property
    def dtype(self) -> torch.dtype:
        """Return the case's dtype as a torch.dtype."""
        return self.sets[0][0].dtype

    @property
    def device(self) -> torch.device:
        """Return the device of the inputs."""
        return self.sets[0][0].device

    @property
    def tolerance(self) -> float:
        """Return the largest relative error that rounding explains."""
        is_exact = self.case.dtype != "float32" or self.device.type != "cuda" or not torch.backends.cudnn.allow_tf32
        return min(LOOSEST, TOLERANCE[self.case.dtype if is_exact else "TF32"] * (DEPTH if self.case.network else 1))


def create_subject(case: Case, device: str, count: Callable[[int], int] = lambda size: 1) -> Subject:
    """Create the subject of a case on a device: module, inputs and gradients of the outputs.

    count: function from the bytes of a set of inputs to the number of sets.
    """
    torch.manual_seed(SEED)
    ours = network(case) if case.network else create(case, "torch")
    if not case.network:
        attzoo.load_weights(ours, draw(ours.spec, np.random.default_rng(SEED)))
    dtype = getattr(torch, case.dtype)
    size = case.width * sum(map(prod, case.shapes))

    def tensor(shape: Sequence[int]) -> Tensor:
        """Return a random tensor of this shape in the case's dtype and layout, on the device."""
        return to_layout(torch.randn(shape, device=device, dtype=dtype), case.layout)

    sets = [[tensor(shape) for shape in case.shapes] for _ in range(count(size))]
    return Subject(case, ours, sets, [] if case.network else [tensor(case.shapes[0]) for _ in sets])


def network(case: Case) -> nn.Module:
    """Create the U-Net of a case, or ResNet-50 with attzoo's blocks, with running statistics of random images."""
    if case.network == "unet":
        skip = None if case.block == "none" else case.block
        net: nn.Module = attzoo.create(
            "unet", case.shapes[0][1], 1, backend="torch", variant=case.variant, skip=skip
        )
    elif case.block == "none":
        net = ResNet50()
    else:
        net = ResNet50(lambda channels: attzoo.info(case.block).create(channels, backend="torch", variant=case.variant))
    x = torch.randn(2, *case.shapes[0][1:])
    with torch.no_grad():
        for _ in range(2):
            net.train()(x)
    return net


def draw(spec: Any, rng: np.random.Generator) -> dict[str, Array]:
    """Draw float32 weights for a block: normal with variance 1 / fan-in; running variances uniform in [0.5, 1.5]."""
    arrays = {}
    for name, weight in spec.weights.items():
        fan_in = max(1, prod(weight.shape[1:]))
        is_variance = name.endswith("var")
        array = rng.uniform(0.5, 1.5, weight.shape) if is_variance else rng.normal(0, fan_in**-0.5, weight.shape)
        arrays[name] = array.astype("float32")
    return arrays


def to_layout(x: Tensor, layout: str) -> Tensor:
    """Return x, of shape (N, C, *S), with this memory layout and the same shape."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels last" else x.contiguous()


# ---- expected results ------------------------------------------------------------------------------------------------


def run(module: nn.Module, mode: str, inputs: Sequence[Tensor], cotangent: Tensor | None) -> list[Tensor]:
    """Return the output and, unless `mode` is "inference", the gradients of the inputs and parameters.

    The loss is sum(output * cotangent), or the output's mean square if `cotangent` is None; then the loss is returned
    instead of the output.
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


def expected_results(subject: Subject) -> list[Tensor]:
    """Compute the expected output and input gradients on the first set of inputs, in float64 on the device.

    The float64 module of a block is first compared with the NumPy reference on a few samples. A network runs with
    running statistics, because batch statistics amplify rounding errors in every norm.
    """
    inputs = [x.double() for x in subject.sets[0]]
    module64 = _float64_module(subject)
    mode = "training" if module64.training else "inference"
    checked_case = replace(subject.case, dtype="float64", layout="", mode=mode)
    if not subject.case.network and checked_case not in CHECKED:
        _check_against_numpy(deepcopy(module64), [crop(x) for x in inputs])
        CHECKED.add(checked_case)
    return _run(subject, module64, inputs)


def slack(subject: Subject, expected: Sequence[Tensor]) -> float:
    """Return how much the expected results change if the inputs change by a rounding error, at most MAX_SLACK.

    The change is relative. It can be large, because a relu's input can be so close to 0 that rounding changes its sign.
    """
    module64, changes = _float64_module(subject), []
    for _ in range(DRAWS):
        scale = PERTURBATION * subject.tolerance
        inputs = [x * (1 + scale * torch.randn_like(x)) for x in map(Tensor.double, subject.sets[0])]
        changes.append(relative_error(_run(subject, module64, inputs), expected))
    return min(MAX_SLACK, 2 * max(changes))   # a factor of 2 because the draws are a sample


def _float64_module(subject: Subject) -> nn.Module:
    """Return a float64 copy of the module on the device, in training or evaluation mode."""
    module64 = deepcopy(subject.ours).to(subject.device, torch.float64)
    return module64.train(subject.case.mode != "inference" and not subject.case.network)


def _run(subject: Subject, module64: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the output of the subject's float64 module and, unless in inference, the gradients of the inputs."""
    mode = "inference" if subject.case.mode == "inference" else "training"
    cotangent = subject.cotangents[0].double() if subject.cotangents else None
    return run(module64, mode, inputs, cotangent)[: 1 + len(inputs)]


def crop(x: Tensor) -> Tensor:
    """Return the first CHECKED_SAMPLES samples, and of volumes only a corner of CHECKED_SIZE voxels per axis."""
    return x[:CHECKED_SAMPLES] if x.ndim < 5 else x[:CHECKED_SAMPLES, :, :CHECKED_SIZE, :CHECKED_SIZE, :CHECKED_SIZE]


def _check_against_numpy(module64: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise RuntimeError if the float64 module and the NumPy reference differ by 1e-10 or more."""
    spec: Any = module64.spec
    weights = {name: array.astype("float64") for name, array in attzoo.weights(module64).items()}
    expected = torch.from_numpy(spec(*(x.cpu().numpy() for x in inputs), weights=weights, training=module64.training))
    error = relative_error([run(module64, "inference", inputs, None)[0].cpu()], [expected])
    if not error < 1e-10:
        raise RuntimeError(
            f"expected float64 {type(module64).__name__} to equal its NumPy reference, got relative error {error:.1e}"
        )


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest |got - expected| / |expected| over the tensors, with L2 norms; NaN if any is NaN."""
    errors = [
        float((gradient.double() - expected_gradient).norm() / expected_gradient.norm())
        for gradient, expected_gradient in zip(got, expected, strict=False)
    ]
    return max(errors, key=lambda error: (error != error, error))


# ---- the U-Net in plain torch ----------------------------------------------------------------------------------------


def plain_unet(ours: nn.Module, inputs: int) -> nn.Module:
    """Create AttUNet, the plain torch.nn network of the variant "leejunhyun", with the weights of `ours`."""
    plain = AttUNet(inputs)
    arrays = attzoo.weights(ours)
    state: Mapping[str, Tensor] = plain.state_dict()
    for name, path in canonical(plain).items():
        state[path].copy_(torch.from_numpy(arrays[name]).reshape(state[path].shape))
    return plain
