"""What all tests of fused kernels use: blocks, inputs, watched memory, and comparisons with float64.

Kernels run on the GPU if there is one, else on the CPU in Triton's interpreter.
"""

import copy
import sys
from contextlib import contextmanager

import pytest
import torch

import attzoo
from attzoo.fast import autograd, choice

if choice.unavailable():   # skips a module that imports this one
    pytest.skip(f"no kernels here: {choice.unavailable()}", allow_module_level=True)

from attzoo.fast import tape
from attzoo.fast.triton import common, maps, passes
from attzoo.fast.triton.common import Tile
from attzoo.ops import torch as ops
from attzoo.ops.activations import torch as activations
from attzoo.testing import TOLERANCE
from attzoo.testing.case import EPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CARDS = {name: attzoo.info(name) for name in attzoo.names() if attzoo.info(name).fused}
ALL = tuple(CARDS)
NAMES = tuple(name for name, card in CARDS.items() if card.residual)      # blocks with one input
SPATIAL = tuple(name for name in NAMES if "positions" in CARDS[name].attends_to)
GATED = tuple(name for name in NAMES if "gate" in CARDS[name].spec.__dataclass_fields__)   # with a choice of gates
POOLED = tuple(name for name in GATED if "reduced_channels" in CARDS[name].spec.__dataclass_fields__)   # a perceptron
SMALL = {"reduced_channels": 3, "kernel_size": 3, "norm": True}   # small, with all options that have their own kernels
LAYOUTS = ("channels first", "channels last")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NUDGE = 2.0**-20   # relative size of the perturbations that measure the condition
RELU_UNCERTAINTY = 4 * EPS["float32"]   # relative to the largest relu input: a smaller one may have the wrong sign
FLOOR = 16   # minimum tolerance, in eps times the norm, in case the eager form happens to be exact
GUARD = 64   # elements before and after each tensor that may not be read or written


# ---- blocks and inputs -----------------------------------------------------------------------------------------------


def options_of(name, dims=2):
    """Return a block's arguments in these tests, without its channels."""
    options = SMALL | {"spatial_dims": dims}
    return {option: value for option, value in options.items() if option in CARDS[name].spec.__dataclass_fields__}


def build(name, channels=8, dtype=torch.float32, dims=2, device=DEVICE, **options):
    """Return a small block in training mode, with every option that has its own kernels."""
    torch.manual_seed(0)
    return CARDS[name].create(channels, backend="torch", **options_of(name, dims) | options).to(device, dtype)


def step_inputs(name, *shape, dtype=torch.float32, layout=LAYOUTS[0], seed=0, device=DEVICE):
    """Return the arguments of `step`: x, further inputs of half its spatial sizes, and the gradient of y."""
    half_shape = (*shape[:2], *(-(-size // 2) for size in shape[2:]))
    shapes = shape, *[half_shape] * (len(CARDS[name].inputs) - 1), shape
    seeds = seed, *range(seed + 2, seed + len(shapes)), seed + 1
    return [draw(*s, dtype=dtype, layout=layout, seed=i, device=device) for s, i in zip(shapes, seeds, strict=True)]


def draw(*shape, layout=LAYOUTS[0], kind="normal", dtype=torch.float32, seed=0, device=DEVICE):
    """Return random numbers, the same on every device, in memory surrounded by NaN.

    kind: "normal", "ties" (many equal numbers), or "equal" (also one constant channel and one of zeros).
    """
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        x = x.round().relu()
    elif kind == "equal":
        x[:, 0] = 1.5
        x[:, -1] = 0
    if layout == LAYOUTS[1]:
        x = to_channels_last(x)
    return guarded(shape, x.stride(), dtype, device)[0].copy_(x)


def to_channels_last(x):
    """Return x in channels last memory layout."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def guarded(size, stride, dtype, device):
    """Return a tensor of NaN, and the vector that holds it between GUARD elements of NaN on each side."""
    length = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
    memory = torch.full((length + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
    return torch.tensor([], dtype=dtype, device=device).set_(memory.untyped_storage(), GUARD, size, stride), memory


# ---- training steps --------------------------------------------------------------------------------------------------


def step(block, *inputs_and_dy, mode="triton"):
    """Return the output, the gradients and the buffers after a training step of a copy of the block, by name.

    inputs_and_dy: the inputs, then the gradient of the output.
    """
    *xs, dy = inputs_and_dy
    block, xs = copy.deepcopy(block), [x.detach().requires_grad_() for x in xs]
    with attzoo.kernels(mode):
        y = block(*xs)
    leaves = dict(zip("xg", xs, strict=False)) | {
        name: weight for name, weight in block.named_parameters() if weight.requires_grad
    }
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    named_gradients = dict(zip((f"gradient of {name}" for name in leaves), gradients, strict=True))
    return {"y": y.detach(), **named_gradients, **dict(block.named_buffers())}


def exact(block, *inputs_and_dy):
    """Return the results of a step of the plain form in float64."""
    return step(copy.deepcopy(block).double(), *(tensor.double() for tensor in inputs_and_dy), mode="eager")


def condition(block, x, dy, expected):
    """Return by how much each result of `exact` changes per relative change of x, dy and weights.

    As in testing.oracle, but equal numbers stay equal, so that ties are preserved.
    """
    changes = dict.fromkeys(expected, 0.0)

    def perturbed(tensor, seed):
        return tensor.double() * (1 + NUDGE * torch.sin((seed + 1) * 1e5 * tensor.double()).sign())

    for turn in range(3):
        block64 = copy.deepcopy(block).double()
        for parameter in block64.parameters():
            parameter.data = perturbed(parameter.data, turn)
        for name, tensor in exact(block64, perturbed(x, turn), perturbed(dy, turn)).items():
            difference = (tensor - expected[name]).abs().nan_to_num(0, posinf=0)
            changes[name] = max(changes[name], difference.max().item() / NUDGE if difference.numel() else 0.0)
    return changes


def uses_kernels(block, *xs, mode="triton"):
    """Whether a call of the block uses the kernels."""
    calls, original = [], autograd.Fused.__call__
    with pytest.MonkeyPatch.context() as patch, attzoo.kernels(mode):
        patch.setattr(
            autograd.Fused, "__call__", lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs)
        )
        block(*xs)
    return bool(calls)


# ---- comparisons -----------------------------------------------------------------------------------------------------


def assert_near(actual, expected, dtype="float32", changes=None, differing_fraction=0.0, eager=None):
    """Assert that results of `step` are accurate to a few units in the last place, with non-finite values as expected.

    Args:
        actual: results of `step`.
        expected: results in float64.
        dtype: dtype of the block.
        changes: results of `condition`, by which tolerances grow.
        differing_fraction: fraction of numbers that may differ: of many positions, a few have two maxima closer than
            rounding.
        eager: results of the plain form in the same dtype; twice their error is allowed too.
    """
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        result = actual[name].double()
        assert result.shape == reference.shape, name
        finite = reference.isfinite()
        assert torch.equal(
            result.nan_to_num(7, 8, 9)[~finite], reference.double().nan_to_num(7, 8, 9)[~finite]
        ), name
        scale = max(1.0, reference[finite].abs().max().item() if finite.any() else 0.0) + (changes or {}).get(name, 0.0)
        allowed = TOLERANCE["output" if name == "y" else "gradient"] * EPS[dtype] * scale
        if eager is not None and finite.any():
            eager_error = (eager[name].double() - reference)[finite].abs().nan_to_num(0, posinf=0)
            allowed = max(allowed, 2 * eager_error.max().item())
        error = (result - reference)[finite].abs()
        assert not error.isnan().any(), f"{name} is not finite where it should be"
        largest_count = differing_fraction * error.numel()
        assert (error > allowed).sum() <= largest_count, f"{name} is off by {error.max()}, allowed {allowed}"


class StepTolerance:
    """Tolerance for a step by kernels: twice the error of the eager form of the same dtype, relative to float64.

    If the input of a relu is within rounding of zero, rounding may change its sign. The tolerance therefore includes
    `flips`: the difference between a step whose relus pass all such inputs and a step whose relus set them to zero.

    The rounding errors of an eager step may cancel by chance, most often in a sum that is one number, such as the
    gradient of a bias. Where a result exceeds the tolerance, the error is therefore the largest of several steps whose
    inputs differ by their rounding, and the tolerance of n numbers is larger by a factor of 1 + 1 / sqrt(n).
    """

    def __init__(self, block, *inputs_and_dy):
        self.block, self.inputs_and_dy = copy.deepcopy(block), inputs_and_dy
        self.eps = EPS[str(inputs_and_dy[0].dtype).removeprefix("torch.")]
        self.expected, self.eager = exact(block, *inputs_and_dy), step(block, *inputs_and_dy, mode="eager")
        with uncertain_relus(True) as self.uncertain_counts:
            all_pass = exact(block, *inputs_and_dy)
        with uncertain_relus(False):
            none_passes = exact(block, *inputs_and_dy)
        self.flips = {name: distance(all_pass[name], none_passes[name]) for name in self.expected}

    def check(self, actual):
        """Assert that results of `step` are within the tolerance, with NaN in the same positions."""
        assert actual.keys() <= self.expected.keys()
        for name, result in actual.items():
            reference = self.expected[name]
            assert result.shape == reference.shape, name
            assert torch.equal(result.isnan(), reference.isnan()), f"{name}: NaN in other positions than expected"
            size = max(reference.double().nan_to_num().norm().item(), reference.numel() ** 0.5)
            error, floor = distance(result, reference), 2 * self.flips[name] + FLOOR * self.eps * size
            allowed = floor + 2 * distance(self.eager[name], reference)
            if error > allowed:
                largest_error = max(self._eager_error(name, turn) for turn in range(5))
                allowed = max(allowed, floor + 2 * (1 + reference.numel() ** -0.5) * largest_error)
            assert error <= allowed, f"{name} is off by {error / size:.1e} of its size, allowed {allowed / size:.1e}"

    def _eager_error(self, name, turn):
        """Return the error of a result of an eager step whose inputs are changed by one unit in the last place."""
        factors = [1 + self.eps * torch.sin((turn + 1) * 1e5 * t.double()).sign() for t in self.inputs_and_dy]
        inputs_and_dy = [t * factor.to(t.dtype) for t, factor in zip(self.inputs_and_dy, factors, strict=True)]
        eager = step(self.block, *inputs_and_dy, mode="eager")
        return distance(eager[name], exact(self.block, *inputs_and_dy)[name])


def distance(tensor, other_tensor):
    """Return the norm of a - b, without NaN."""
    return (tensor.double() - other_tensor.double()).nan_to_num().norm().item()


@contextmanager
def uncertain_relus(pass_uncertain):
    """Make relus pass all inputs, or none, that are within rounding of zero but not zero; yield their counts."""
    counts, original = [], ops.relu

    def relu(h):
        size = h.detach().abs()
        uncertain = (size > 0) & (size <= RELU_UNCERTAINTY * size.max()) if h.numel() else size > 0
        counts.append(int(uncertain.sum()))
        return torch.where(uncertain, h * pass_uncertain, original(h))

    with pytest.MonkeyPatch.context() as patch:
        for module in (ops, activations):   # blocks call the first, activate() the second
            patch.setattr(module, "relu", relu)
        yield counts


def close(actual, expected, tolerance):
    """Assert that results of `step` are off by at most `tolerance` times their norm, with NaN in the same positions."""
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        result, reference = actual[name].double(), reference.double()
        assert result.shape == reference.shape, name
        assert torch.equal(result.isnan(), reference.isnan()), f"{name}: NaN in other positions than expected"
        error = (result - reference).nan_to_num().norm().item()
        size = max(reference.nan_to_num().norm().item(), reference.numel() ** 0.5)
        assert error <= tolerance * size, f"{name} is off by {error / size:.1e} of its size"


def check(block, x, dy, dtype="float32", differing_fraction=0.0):
    """Compare a step by the kernels with the plain form in float64, and return its results."""
    actual, expected = step(block, x, dy), exact(block, x, dy)
    assert_near(
        actual, expected, dtype, condition(block, x, dy, expected), differing_fraction, step(block, x, dy, mode="eager")
    )
    return actual


def kernel_modules(constant):
    """Return the modules of kernels of blocks with one input that have a constant of this name, such as "REAL"."""
    forms = [attzoo.get(name, backend="torch").triton_form() for name in NAMES]
    shared = [module for name, module in sys.modules.items() if name.startswith("attzoo.fast.triton.")]
    return [module for module in (*shared, *forms) if hasattr(module, constant)]


@contextmanager
def tiny():
    """Use tiles so small that small inputs have several tiles, parts and steps per part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape, "RECORDED", {})   # recordings contain tiles
        patch.setattr(passes, "tile", lambda name, x: Tile(4, 8, 4))
        patch.setattr(common, "PROGRAMS", 12)
        patch.setattr(maps, "POSITIONS_PER_PROGRAM", 16)
        for module in kernel_modules("CHANNELS_AT_ONCE"):
            patch.setattr(module, "CHANNELS_AT_ONCE", 16)
        yield
