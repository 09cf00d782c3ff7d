"""Features of PyTorch with blocks: copies, autograd, memory formats, precision, parallel training, exporters, hooks."""

import copy
import io
import math
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections import defaultdict
from datetime import timedelta
from functools import partial
from itertools import product

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")   # cuBLAS is deterministic only with this

import numpy as np
import pytest
import residual
import torch
from operations import Large, Operations
from samples import (
    NET,
    SAMPLES,
    assert_initialized_as,
    in_thirds,
    is_clear_of_zero,
    network,
    pooled_initial_arrays,
    pooling_blocks,
    seed_of,
    zeros_of,
)
from torch import nn
from torch.export import Dim
from torch.testing import assert_close
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import attzoo
from attzoo.blocks.torch import Block
from attzoo.contract import is_older
from attzoo.ops.torch import crop, find, pool, repeat

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}   # rank -> memory format
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))

every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
WEIGHTED = {name: sample for name, sample in SAMPLES.items() if sample.has_weights}
every_sample_with_weights = pytest.mark.parametrize("sample", WEIGHTED.values(), ids=WEIGHTED)
normed = pytest.mark.parametrize("name", [name for name, s in SAMPLES.items() if s.has_statistics])
single = pytest.mark.parametrize("name", [name for name, s in SAMPLES.items() if s.has_single_values])
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])


@pytest.fixture(autouse=True)
def _settings():
    """Restore the global settings that tests change, and disable TF32 in convolutions on CUDA."""
    threads = torch.get_num_threads()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compile_block():
    """Return torch.compile without graph breaks, and reset it after the test."""
    yield partial(torch.compile, fullgraph=True)
    torch.compiler.reset()


def build(sample, dtype=torch.float32, device="cpu", seed=0):
    """Return a block in eval mode, with no weight of zeros, random running statistics, no input of a relu near zero."""
    for attempt in range(100):
        torch.manual_seed(seed + 1000 * attempt)
        block = sample.create("torch").eval()
        for name in zeros_of(block.spec):
            torch.nn.init.normal_(find(block, name))
        for name, buffer in block.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        if is_clear_of_zero(block.spec, attzoo.weights(block), sample.arrays()):
            return block.to(device, dtype)
    raise ValueError(f"expected initial weights of {sample} for which no input of a relu is near zero, got none in 100")


def inputs(sample, dtype=torch.float32, device="cpu", **kwargs):
    """Return the inputs of a sample as tensors."""
    return [torch.from_numpy(x).to(device, dtype) for x in sample.arrays(**kwargs)]


def passes(block, xs):
    """Return the output, and the gradients of a weighted sum of it with respect to every input and parameter."""
    xs = [x.detach().requires_grad_() for x in xs]
    y = block(*xs)
    cotangent = torch.empty_like(y).copy_(torch.linspace(-1, 1, y.numel()).reshape(y.shape))   # in the layout of y
    return [y, *torch.autograd.grad(y, [*xs, *block.parameters()], cotangent)]


def relative_error(actual, expected):
    """Return the largest absolute difference, divided by the largest absolute expected value."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    difference, scale = float((actual - expected).abs().max()), float(expected.abs().max())
    assert math.isfinite(difference)
    return difference / (scale or 1)


def largest_error(block, actual, expected):
    """Return the largest relative error of the results of `passes`.

    The errors of a layer's gradients are relative to the largest of them: a bias that does not change the output, such
    as one before a softmax, has a gradient of zero and rounding errors.
    """
    paths = [name.rpartition(".")[0] or name for name, _ in block.named_parameters()]
    groups = defaultdict(lambda: ([], []))   # all results by layer, and the output and each input by their positions
    for path, *results in zip([*range(len(expected) - len(paths)), *paths], actual, expected, strict=True):
        for group, result in zip(groups[path], results, strict=True):
            group.append(result.flatten())
    return max(relative_error(*map(torch.cat, group)) for group in groups.values())


class Net(nn.Module):
    """The network of all blocks: (N, 8, H, W), (N, 6, G, G) -> (N, 8, H, W)."""

    def __init__(self, seed=0, third=None):
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 3, padding=1)
        self.blocks, self.gates = nn.Sequential(), nn.ModuleDict()
        for name, sample in network(third).items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(name) + seed)
                (self.blocks if len(sample.shapes) == 1 else self.gates).add_module(name, sample.create("torch"))

    def forward(self, x, g):
        x = self.blocks(self.stem(x))
        for gate in self.gates.values():
            x = gate(x, *[g] * (len(gate.spec.inputs) - 1))
        return x


class BranchOnSize(nn.Module):
    """A module with a branch on the size of its input, of which exporters keep one side."""

    def forward(self, x):
        return x * 2 if x.shape[-1] == 5 else x * 3


# ---- copies and state ----------------------------------------------------------------------------------


@pytest.mark.case68
@every_sample
def test_deepcopy_is_independent(sample):
    block, xs = build(sample), inputs(sample)
    copied = copy.deepcopy(block)
    assert copied.spec == block.spec
    assert torch.equal(copied(*xs), block(*xs))
    output_before = block(*xs)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert torch.equal(block(*xs), output_before)
    assert torch.equal(copied(*xs), output_before) is not sample.has_weights


@pytest.mark.case69
@every_sample
def test_pickled_block_equals_the_block(sample):
    block, xs = build(sample), inputs(sample)
    loaded = pickle.loads(pickle.dumps(block))
    assert loaded.spec == block.spec
    assert not loaded.training
    assert torch.equal(loaded(*xs), block(*xs))


@pytest.mark.case83
@every_sample_with_weights
def test_state_dicts_can_be_exchanged(sample):
    block, other_block, xs = build(sample), build(sample, seed=1), inputs(sample)
    y, other_output = block(*xs), other_block(*xs)
    assert not torch.equal(y, other_output)
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other_state = copy.deepcopy(other_block.state_dict())
    other_block.load_state_dict(state, strict=True)
    block.load_state_dict(other_state, strict=True)
    assert torch.equal(other_block(*xs), y)
    assert torch.equal(block(*xs), other_output)


@every_sample
def test_state_dict_has_canonical_names(sample):
    block = build(sample)
    names = [name.replace(".running_", ".") for name in block.state_dict() if not name.endswith("num_batches_tracked")]
    assert sorted(names) == sorted(block.spec.weights)


@every_sample_with_weights
def test_state_dict_is_strict(sample):
    block = build(sample)
    state = block.state_dict()
    name, tensor = next(iter(state.items()))
    for invalid_state, message in (
        ({key: value for key, value in state.items() if key != name}, "Missing key"),
        (state | {"surplus": tensor}, "Unexpected key"),
        (state | {name: torch.zeros(7, 7, 7)}, "size mismatch"),
    ):
        with pytest.raises(RuntimeError, match=message):
            block.load_state_dict(invalid_state)


@pytest.mark.case78
@every_sample
def test_block_on_the_meta_device_can_be_initialized(sample):
    with torch.device("meta"):
        block = sample.create("torch")
        y = block(*(torch.empty(s) for s in sample.shapes))
    assert y.is_meta
    assert y.shape == sample.shapes[0]
    if dict(block.named_parameters()):   # convolutions of torch would return numbers from uninitialised memory
        with pytest.raises(ValueError, match=r"^expected weights with values, got [\w.]+ on the meta device: load "):
            block(*(torch.zeros(s) for s in sample.shapes))
    torch.manual_seed(0)
    block = block.to_empty(device="cpu")
    block.reset_parameters()
    reference = sample.create("torch")
    torch.manual_seed(0)
    reference.reset_parameters()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(block.state_dict()[name], tensor), name


@pytest.mark.parametrize("by_hook", [True, False])
def test_weights_that_are_loaded_in_the_call_may_be_on_the_meta_device(by_hook):
    """As with accelerate's cpu_offload, which replaces the `forward` of layers."""
    block, x = attzoo.create("spatial_attention", 8, backend="torch"), torch.randn(1, 8, 5, 5)
    expected, saved, forward = block(x), block.conv.weight.data.clone(), block.conv.forward

    def load(*args):
        block.conv.to_empty(device="cpu").weight.data.copy_(saved)

    block.to("meta")
    if by_hook:
        block.conv.register_forward_pre_hook(load)
    else:
        block.conv.forward = lambda x: [load(), forward(x)][1]
    assert_close(block(x), expected)


# ---- initialization ------------------------------------------------------------------------------------


@every_sample
def test_initial_weights_have_the_distributions_of_the_spec(sample):
    torch.manual_seed(0)
    arrays = pooled_initial_arrays(sample, attzoo.weights, "torch")
    for name, weight in sample.create("numpy").weights.items():
        assert_initialized_as(arrays[name], weight)


@every_sample
def test_reset_parameters_depends_only_on_the_seed(sample):
    block = build(sample).train()
    block(*inputs(sample))   # updates running statistics
    torch.manual_seed(3)
    block.reset_parameters()
    state_of_first_reset = copy.deepcopy(block.state_dict())
    torch.manual_seed(3)
    block.reset_parameters()
    for name, tensor in block.state_dict().items():
        assert torch.equal(state_of_first_reset[name], tensor)
        assert not name.endswith("num_batches_tracked") or tensor == 0
    for name, weight in block.spec.weights.items():
        if weight.initialization == "constant":
            assert (find(block, name) == weight.center).all()


# ---- autograd ------------------------------------------------------------------------------------------


@pytest.mark.case53
@every_sample
def test_inputs_are_not_changed(sample):
    block, xs = build(sample).train(), inputs(sample)
    original = [x.clone() for x in xs]
    passes(block, xs)
    assert all(torch.equal(x, b) for x, b in zip(xs, original, strict=True))


@pytest.mark.case54
@every_sample
def test_frozen_block_passes_gradients_to_its_input(sample):
    block, xs = build(sample).requires_grad_(False), inputs(sample)
    assert not block(*xs).requires_grad
    xs[0].requires_grad_()
    block(*xs).sum().backward()
    assert xs[0].grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in block.parameters())


def function_and_tensors(sample):
    """Return a block, a function of its inputs and parameters, and float64 tensors for that function."""
    block = build(sample, torch.float64)
    names = [name for name, _ in block.named_parameters()]
    tensors = [*inputs(sample, torch.float64), *(parameter.detach() for parameter in block.parameters())]

    def call(*tensors):
        n = len(sample.shapes)
        return torch.func.functional_call(block, dict(zip(names, tensors[n:], strict=True)), tensors[:n])

    return block, call, [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.case55
@every_sample
@pytest.mark.one_of_each(share=3)
def test_gradcheck(sample):
    _, call, tensors = function_and_tensors(sample)
    assert torch.autograd.gradcheck(call, tensors)


@pytest.mark.case55
@normed
@pytest.mark.one_of_each(share=3)
def test_gradcheck_in_training(name):
    block, call, tensors = function_and_tensors(SAMPLES[name])
    block.train()
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


@pytest.mark.case56
@every_sample
def test_gradgradcheck(sample):
    _, call, tensors = function_and_tensors(sample)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.case57
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_sample
def test_output_without_gradients_is_the_same(sample, mode):
    block, xs = build(sample), inputs(sample)
    with mode():
        y = block(*xs)
    assert not y.requires_grad
    assert torch.equal(y, block(*xs))


@pytest.mark.case58
@every_sample_with_weights
def test_every_parameter_gets_a_gradient(sample):
    block, xs = build(sample), inputs(sample)   # in training, a norm removes the bias before it
    block(*xs).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.case59
@every_sample
def test_vmap_equals_single_calls(sample):
    block = build(sample, torch.float64)
    sets = [inputs(sample, torch.float64, seed=seed) for seed in range(3)]
    y = torch.func.vmap(block)(*(torch.stack(xs) for xs in zip(*sets, strict=True)))
    for output, xs in zip(y, sets, strict=True):
        assert_close(output, block(*xs), rtol=1e-12, atol=1e-12)


@pytest.mark.case59
@every_sample_with_weights
def test_vmap_of_gradients_sums_to_the_gradient(sample):
    block, xs = build(sample, torch.float64), inputs(sample, torch.float64)
    parameters = dict(block.named_parameters())

    def loss(parameters, *xs):
        return torch.func.functional_call(block, parameters, tuple(x[None] for x in xs)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *(0,) * len(xs)))(parameters, *xs)
    block(*xs).square().sum().backward()
    for name, parameter in parameters.items():
        assert_close(gradients[name].sum(0), parameter.grad, rtol=1e-10, atol=1e-10)


@every_sample
def test_checkpoint_has_the_same_gradients(sample):
    block, xs = build(sample), inputs(sample)

    def recomputed(*xs):
        return torch.utils.checkpoint.checkpoint(block, *xs, use_reentrant=False)

    recomputed.parameters = block.parameters
    for actual, expected in zip(passes(recomputed, xs), passes(block, xs), strict=True):
        assert torch.equal(actual, expected)


# ---- memory --------------------------------------------------------------------------------------------


@pytest.mark.case49
@every_sample
def test_non_contiguous_inputs_give_the_same_results(sample):
    block, xs = build(sample, torch.float64), inputs(sample, torch.float64)
    wide = [torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0].mT.contiguous().mT for x in xs]
    assert not any(x.is_contiguous() for x in wide)
    assert largest_error(block, passes(block, wide), passes(block, xs)) < 1e-12


@pytest.mark.case51
@every_sample
def test_expanded_inputs_give_the_same_results(sample):
    block, xs = build(sample, torch.float64), inputs(sample, torch.float64)
    flat = [x[:1, :, :1].expand(x.shape) for x in xs]
    assert all(x.stride()[0] == x.stride()[2] == 0 for x in flat)
    assert largest_error(block, passes(block, flat), passes(block, [x.contiguous() for x in flat])) < 1e-12


@pytest.mark.case50
@devices
@every_sample
def test_channels_last_memory_format_is_preserved(sample, device):
    if (rank := len(sample.shapes[0])) == 3:
        return   # torch has no channels-last format for one spatial axis
    layout = CHANNELS_LAST[rank]
    block, xs = build(sample, device=device), inputs(sample, device=device)
    last = [x.to(memory_format=layout) for x in xs]
    actual, expected = passes(block, last), passes(block, xs)
    assert actual[0].is_contiguous(memory_format=layout)
    assert not expected[0].is_contiguous(memory_format=layout)
    assert actual[1].is_contiguous(memory_format=layout)   # the gradient of x
    assert largest_error(block, actual, expected) < 1e-5
    converted = passes(block.to(memory_format=layout), last)
    assert converted[0].is_contiguous(memory_format=layout)
    assert largest_error(block, converted, expected) < 1e-5


def large_allocations(block, x, dy):
    """Return the number of tensors of the size of x that a training step allocates."""
    with Large(x) as recorder:
        torch.autograd.grad(block(x), [x, *block.parameters()], dy)
    return len(recorder.made.keys() - {tensor.untyped_storage().data_ptr() for tensor in (x, dy)})


PLAIN = [name for name in pooling_blocks() if attzoo.get(name, backend="torch").cpu_form is None]
MULTIPLY = [
    name for name in PLAIN if attzoo.info(name).build().combination == "multiply" and SAMPLES[name].has_few_coefficients
]


@pytest.mark.parametrize("name", MULTIPLY)
def test_gradient_of_the_average_is_not_allocated(name):
    block = attzoo.info(name).create(8, backend="torch")
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    assert large_allocations(block, x, torch.randn(x.shape)) == 4   # y, both gradients of the product, and their sum


# ---- modes ---------------------------------------------------------------------------------------------


@pytest.mark.case60
@every_sample
def test_training_equals_inference_without_norm(sample):
    block, xs = build(sample), inputs(sample)
    assert torch.equal(block.eval()(*xs), block.train()(*xs)) is not sample.has_statistics
    assert bool(list(block.buffers())) is sample.has_statistics


@pytest.mark.case60
@normed
def test_running_statistics_are_updated_only_in_training(name):
    block, xs = build(SAMPLES[name]), inputs(SAMPLES[name])
    state_before = copy.deepcopy(block.state_dict())
    block(*xs)
    assert all(torch.equal(value, state_before[key]) for key, value in block.state_dict().items())
    block.train()(*xs)
    for k, v in block.state_dict().items():
        assert torch.equal(v, state_before[k]) is not k.endswith(
            ("running_mean", "running_var", "num_batches_tracked")
        ), k


@pytest.mark.case61
@single
def test_batch_norm_of_one_value_per_channel_raises_in_training(name):
    sample = SAMPLES[name]
    block, xs = build(sample).train(), list(map(torch.from_numpy, sample.single_values(np.float32)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(*xs)
    assert block.eval()(*xs).isfinite().all()


# ---- determinism ---------------------------------------------------------------------------------------


@pytest.mark.case62
@devices
@every_sample
def test_results_are_bitwise_reproducible(sample, device):
    block, xs = build(sample, device=device).train(), inputs(sample, device=device)
    torch.use_deterministic_algorithms(True)
    first_results = passes(block, xs)
    for actual, expected in zip(passes(block, xs), first_results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.case63
@every_sample
def test_results_do_not_depend_on_the_number_of_threads(sample):
    block = build(sample, torch.float64)
    xs = [nn.functional.interpolate(x, scale_factor=6) for x in inputs(sample, torch.float64)]   # enough for threads
    torch.set_num_threads(1)
    expected = passes(block, xs)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        assert largest_error(block, passes(block, xs), expected) < 1e-11


@pytest.mark.case64
@every_sample
def test_results_do_not_depend_on_the_batch_size(sample):
    block, xs = build(sample), inputs(sample, increase=3)
    y = block(*xs)
    for i in range(len(y)):
        assert relative_error(block(*(x[i : i + 1] for x in xs)), y[i : i + 1]) < 1e-5


# operations that raise an error on CUDA under torch.use_deterministic_algorithms of 2.13
THROWING = {
    *(f"upsample_{kind}_backward" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "avg_pool3d_backward",
    *(f"max_unpool{n}d" for n in (2, 3)), *(f"reflection_pad{n}d_backward" for n in (1, 2, 3)),
    *(f"fractional_max_pool{n}d_backward" for n in (2, 3)), *(f"grid_sampler_{n}d_backward" for n in (2, 3)),
    "adaptive_max_pool2d_backward", "put_", "histc", "bincount", "median", "cumsum",
}   # fmt: skip


def operation_names(block, xs):
    """Return the names of the operations of a deterministic training step on the meta device, which are CUDA's."""
    torch.use_deterministic_algorithms(True)
    with Operations() as recorder:
        y = block.to("meta")(*(x.to("meta").requires_grad_() for x in xs))
        y.backward(torch.empty_like(y))
    return set(recorder.names)


@pytest.mark.case65
@every_sample
def test_no_operation_raises_in_deterministic_mode(sample):
    block, throwing = build(sample).train(), THROWING
    if is_older(torch.__version__, "2.11"):   # decomposes bilinear interpolation on CUDA only
        throwing = throwing - {"upsample_bilinear2d_backward"}
    for increase in (0, 1):
        assert not operation_names(block, inputs(sample, increase=increase)) & throwing


@pytest.mark.case65
def test_operation_that_raises_in_deterministic_mode_is_detected():
    up = nn.Upsample(7, mode="linear")
    assert operation_names(up, [torch.ones(1, 1, 4)]) & THROWING == {"upsample_linear1d_backward"}
    pool_names = operation_names(nn.AdaptiveMaxPool2d(2), [torch.ones(1, 1, 4, 4)])
    assert pool_names & THROWING == {"adaptive_max_pool2d_backward"}


# ---- precision -----------------------------------------------------------------------------------------

LOW = pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=["fp16", "bf16"])


@devices
@every_sample
def test_float32_results_agree_with_float64(sample, device):
    block = build(sample, device=device).float()
    expected = passes(build(sample, torch.float64), inputs(sample, torch.float64))
    actual = passes(block, inputs(sample, device=device))
    assert all(g.device.type == device for g in actual)
    assert largest_error(block, actual, expected) < 1e-5


@pytest.mark.case38
@LOW
@devices
@every_sample
def test_autocast_results_agree_with_float64(sample, device, dtype, bound):
    block, xs = build(sample, device=device), inputs(sample, device=device)
    expected = build(sample, torch.float64)(*inputs(sample, torch.float64))
    with torch.autocast(device, dtype):
        y = block(*xs)
        low_precision_y = block(*(x.to(dtype) for x in xs))   # as after a convolution
    # x * attention(x) is float32; the convolution of an output transform computes in low precision
    assert y.dtype == (dtype if sample.config.get("output_transform") else torch.float32)
    assert low_precision_y.dtype == dtype
    assert 0 < relative_error(y, expected) < bound
    assert 0 < relative_error(low_precision_y, expected) < bound
    if sample.has_weights:
        y.float().square().sum().backward()
    assert all(weight.grad.dtype == torch.float32 and weight.grad.isfinite().all() for weight in block.parameters())


@LOW
@devices
@every_sample
def test_low_precision_results_agree_with_float64(sample, device, dtype, bound):
    block, xs = build(sample, device=device).to(dtype), inputs(sample, dtype, device)
    y, *gradients = passes(block, xs)
    assert {y.dtype, *(g.dtype for g in gradients)} == {dtype}
    assert 0 < relative_error(y, build(sample, torch.float64)(*inputs(sample, torch.float64))) < bound
    assert all(g.isfinite().all() for g in gradients)


# ---- parallel training ---------------------------------------------------------------------------------


def normalize_x(block, args):
    """Return the inputs of a block, with an x of mean 0 and variance 1 in each sample."""
    x, *further = args
    return nn.functional.layer_norm(x, x.shape[1:]), *further


def net_batch():
    """Return a network, all of whose parameters change in training, and a batch of x, g and y."""
    torch.manual_seed(0)
    batch = [torch.randn(4, *shape, dtype=torch.float64) for shape in ((8, 6, 5), (6, 2, 3), (8, 6, 5))]
    for seed in range(100):
        net = Net(seed).double().eval()   # in training, norms depend on the batch size
        for block in (*net.blocks, *net.gates.values()):
            block.register_forward_pre_hook(normalize_x)   # or x is 1e-5 after all blocks, and so are the gradients
        trained = copy.deepcopy(net)
        train(trained, *batch)
        if not any(map(torch.equal, net.parameters(), trained.parameters())):   # or no input of a relu is positive
            return net, *batch
    raise ValueError("expected initial weights with which all parameters change in training, got none in 100")


def attached_batch():
    """Return a network with an attached block, all of whose parameters are used, and a batch of x and y."""
    net = residual.trained("eca").double()
    net.unused = nn.Identity()
    return net, *(torch.randn(4, *shape, dtype=torch.float64) for shape in ((3, 9, 8), (2,)))


def train(net, *batch):
    """Train for three steps of SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(*batch[:-1]), batch[-1]).backward()
        optimizer.step()


def shard(net):
    """Shard a network between two processes by FSDP2, the host of its attached block by itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    fully_shard(net.bn2, mesh=mesh)
    wrapped = fully_shard(net, mesh=mesh)
    with pytest.raises(ValueError, match="expected a network without wrapper, got FSDPModule"):
        attzoo.attach(wrapped, "se", after="bn1")
    return wrapped


DISTRIBUTED = {   # name: network and batch, and how the network is wrapped
    "blocks": (net_batch, nn.parallel.DistributedDataParallel),
    "attached": (attached_batch, nn.parallel.DistributedDataParallel),
}
if not is_older(torch.__version__, "2.13"):   # older versions were not tried
    DISTRIBUTED["sharded"] = attached_batch, shard


def train_distributed(rank, folder):
    """Train in one of two processes, on half of the batch, with averaged gradients."""
    limit = timedelta(seconds=100)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    for name, (create_net, wrap) in DISTRIBUTED.items():
        torch.manual_seed(0)
        net, *batch = create_net()
        train(wrap(net), *(tensor[rank::2] for tensor in batch))
        state = {
            key: value.full_tensor() if hasattr(value, "full_tensor") else value
            for key, value in net.state_dict().items()
        }
        torch.save(state, folder / f"{name}{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.case66
def test_training_in_two_processes_equals_training_in_one(tmp_path):
    torch.multiprocessing.spawn(train_distributed, (tmp_path,), nprocs=2)
    for case, (create_net, _) in DISTRIBUTED.items():
        torch.manual_seed(0)
        net, *batch = create_net()
        initial = copy.deepcopy(net.state_dict())
        train(net, *batch)
        for rank in range(2):
            trained = torch.load(tmp_path / f"{case}{rank}", weights_only=True)
            for name, expected in net.state_dict().items():
                assert_close(trained[name], expected, rtol=1e-10, atol=1e-12)
                assert name not in dict(net.named_parameters()) or not torch.equal(expected, initial[name]), name


@pytest.mark.case67
@every_sample
def test_data_parallel_equals_the_block(sample):
    block, xs = build(sample), inputs(sample)
    assert torch.equal(nn.DataParallel(block, device_ids=[])(*xs), block(*xs))


WORKERS = """
import torch, attzoo

class Data(torch.utils.data.Dataset):
    def __init__(self):
        torch.manual_seed(0)
        self.block = attzoo.create("cbam", 8, backend="torch", reduction=2)
        self.x = torch.randn(4, 8, 6, 5)

    def __len__(self):
        return len(self.x)

    @torch.no_grad()
    def __getitem__(self, i):
        return self.block(self.x[i : i + 1])[0]

if __name__ == "__main__":
    data = Data()
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(data, num_workers=1, multiprocessing_context=context)
        for got, expected in zip(loader, data, strict=True):
            torch.testing.assert_close(got[0], expected)
    print("done")
"""


@pytest.mark.case70
@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_block_works_in_worker_processes(tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["done"], run.stderr


# ---- exporters -----------------------------------------------------------------------------------------


def dynamic(xs):
    """Return dynamic shapes for torch.export: every axis but the channels."""
    return tuple({axis: Dim.DYNAMIC for axis in range(x.ndim) if axis != 1} for x in xs)


def assert_same_at_other_sizes(program, block, sample):
    """Compare a program with its block at the sizes of the example and at three others, odd and even on each axis."""
    for increase in (0, 1, 2, 3):
        xs = inputs(sample, increase=increase)
        assert relative_error(program(*xs), block(*xs)) < 1e-5


@pytest.mark.case72
@every_sample
@pytest.mark.one_of_each(share=3)
def test_exported_block_equals_the_block(sample):
    block, xs = build(sample), inputs(sample)
    program = torch.export.export(block, tuple(xs), dynamic_shapes=dynamic(xs))
    assert_same_at_other_sizes(program.module(), block, sample)


@pytest.mark.case72
def test_exported_gate_with_named_sizes_equals_the_gate():
    sample = SAMPLES["attention_gate-coarse"]
    block, xs = build(sample), inputs(sample)
    n, h, w, gh, gw = (Dim(name, min=low, max=512) for name, low in zip("nhwij", (2, 4, 4, 2, 2), strict=True))
    shapes = {"x": {0: n, 2: h, 3: w}, "g": {0: n, 2: gh, 3: gw}}
    program = torch.export.export(block, tuple(xs), dynamic_shapes=shapes)
    assert_same_at_other_sizes(program.module(), block, sample)


@pytest.mark.case72
def test_export_refuses_a_branch_on_the_size():
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
        torch.export.export(BranchOnSize(), (torch.ones(2, 3, 5),), dynamic_shapes=({2: Dim.DYNAMIC},))


@pytest.mark.case73
@every_sample
@pytest.mark.one_of_each(share=3)
def test_compile_without_graph_breaks(sample, compile_block):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()   # runs the graph without changes
    block = build(sample, torch.float64)
    compiled = compile_block(block, backend=counter)
    for increase in (0, 1, 2, 3):
        xs = inputs(sample, torch.float64, increase=increase)
        assert largest_error(block, passes(compiled, xs), passes(block, xs)) < 1e-12
    assert counter.frame_count <= 2 + len(sample.shapes) // 2   # first size, dynamic size; equal sizes of x and g


@pytest.mark.case73
@in_thirds
def test_compiled_backward_pass_equals_eager(third, compile_block):
    net = Net(third=third).double()
    compiled = compile_block(copy.deepcopy(net), backend="aot_eager")
    for increase in (0, 1):
        xs = inputs(NET, torch.float64, increase=increase)
        for actual, expected in zip(passes(compiled, xs), passes(net, xs), strict=True):
            assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for actual, expected in zip(compiled.buffers(), net.buffers(), strict=True):
        assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.case73
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++ on a CPU")
def test_block_compiled_with_inductor_equals_the_block(compile_block):
    sample = SAMPLES["eca"]
    block = build(sample)
    compiled = compile_block(block, dynamic=True)
    with torch.no_grad():
        assert_same_at_other_sizes(compiled, block, sample)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++ on a CPU")
def test_pooling_and_repeating_compiled_with_inductor_work_at_all_sizes():
    """As in a U-Net. The compiler fails if an index is the remainder of a negative number."""

    def down_and_up(x):
        return x + crop(repeat(pool(x, (2, 2)), (2, 2)), x.shape[2:])

    torch.compiler.reset()
    compiled = torch.compile(down_and_up, dynamic=True)
    for size in ((6, 8), (5, 7)):
        x = torch.randn(2, 3, *size)
        pooled = nn.functional.max_pool2d(x, 2, ceil_mode=True).repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert_close(compiled(x), x + pooled[:, :, : size[0], : size[1]], rtol=0, atol=0)
    torch.compiler.reset()


@pytest.mark.case75
@every_sample
def test_traced_block_equals_the_block(sample):
    block, xs = build(sample), inputs(sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)   # checks of inputs are not traced
        traced = torch.jit.trace(block, tuple(xs))
    assert_same_at_other_sizes(traced, block, sample)


@pytest.mark.case75
def test_trace_of_a_branch_on_the_size_is_detected():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(BranchOnSize(), torch.ones(2, 8, 6, 5))
    with pytest.raises(AssertionError):
        assert_same_at_other_sizes(traced, BranchOnSize(), SAMPLES["eca"])


@pytest.mark.case74
@every_sample
def test_script_refuses(sample):
    """TorchScript cannot represent a spec and raises an error."""
    with pytest.raises((RuntimeError, ValueError)):
        torch.jit.script(build(sample))


class LeafTracer(torch.fx.Tracer):
    """A tracer that treats blocks as leaves, like torch's own layers."""

    def is_leaf_module(self, module, qualified_name):
        return isinstance(module, Block) or super().is_leaf_module(module, qualified_name)


@pytest.mark.case76
def test_traced_network_with_blocks_as_leaves_equals_the_network():
    net = Net().eval()
    graph = LeafTracer().trace(net)
    paths = [f"{'blocks' if len(sample.shapes) == 1 else 'gates'}.{name}" for name, sample in network().items()]
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["stem", *paths]
    traced = torch.fx.GraphModule(net, graph)
    assert_same_at_other_sizes(traced, net, NET)


@pytest.mark.case77
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # inside torch.onnx
@pytest.mark.parametrize(("name", "third"), [
    *product(["net"], range(3)), *((name, None) for name, sample in SAMPLES.items() if len(sample.shapes[0]) != 4),
])   # fmt: skip
@pytest.mark.one_of_each(share=3)
def test_onnx_model_equals_the_block(name, third, tmp_path):
    import onnxruntime

    sample = (SAMPLES | {"net": NET})[name]
    resamples = len(sample.shapes) > 1 and sample.config.get("interpolation", "linear") == "linear"
    if is_older(torch.__version__, "2.7") and resamples:
        pytest.skip("torch 2.6 cannot export bilinear F.interpolate with a dynamic size")
    block, xs = build(sample) if third is None else Net(third=third).eval(), inputs(sample)
    file = tmp_path / "block.onnx"
    torch.onnx.export(block, tuple(xs), file, dynamo=True, dynamic_shapes=dynamic(xs), verbose=False)
    session = onnxruntime.InferenceSession(file)
    names = [node.name for node in session.get_inputs()]

    def run(*xs):
        return torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in xs), strict=True)))[0])

    assert_same_at_other_sizes(run, block, sample)


# ---- tools ---------------------------------------------------------------------------------------------


@pytest.mark.case71
@every_sample
def test_hooks_of_all_modules_run(sample):
    block, xs = build(sample), inputs(sample)
    before, after, backward = [], [], []
    for module in block.modules():
        module.register_forward_pre_hook(lambda module, args: before.append(module))
        module.register_forward_hook(lambda module, args, output: after.append((module, output)))
        module.register_full_backward_hook(lambda module, inner, outer: backward.append(module))
    y = block(*(x.requires_grad_() for x in xs))
    y.sum().backward()
    assert set(before) == {module for module, _ in after} == set(backward) == set(block.modules())
    assert after[-1][0] is block
    assert torch.equal(after[-1][1], y)


@every_sample
def test_flop_counter_counts_two_per_mac(sample):
    from torch.utils.flop_counter import FlopCounterMode

    block, xs = build(sample), inputs(sample, increase=1)
    with FlopCounterMode(display=False) as counter:
        block(*xs)
    assert counter.get_total_flops() == 2 * block.spec.macs(*(x.shape for x in xs))


@every_sample_with_weights
def test_parameter_count_equals_that_of_the_spec(sample):
    block = build(sample)
    count = sum(weight.size for weight in block.spec.weights.values() if weight.trainable)
    assert nn.utils.parameters_to_vector(block.parameters()).numel() == count


@normed
def test_block_works_with_sync_batch_norm(name):
    block, xs = build(SAMPLES[name]), inputs(SAMPLES[name])
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert relative_error(synced(*xs), block(*xs)) < 1e-6
    arrays = attzoo.weights(synced)
    assert all(np.array_equal(arrays[name], array) for name, array in attzoo.weights(block).items())


def test_block_works_with_weight_norm():
    block, xs = build(SAMPLES["se"]), inputs(SAMPLES["se"])
    expected = block(*xs)
    nn.utils.parametrizations.weight_norm(block.squeeze)
    assert relative_error(block(*xs), expected) < 1e-6
    assert_close(torch.from_numpy(attzoo.weights(block)["squeeze.weight"]), block.squeeze.weight.detach())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_sample
def test_cuda_graph_can_be_replayed(sample):
    block, static = build(sample, device="cuda"), inputs(sample, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            block(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = block(*static)
    new_inputs = inputs(sample, device="cuda", seed=1)
    for tensor, new_input in zip(static, new_inputs, strict=True):
        tensor.copy_(new_input)
    graph.replay()
    assert relative_error(y, block(*new_inputs)) < 1e-6


# ---- shortcut and activation -----------------------------------------------------------------------------------------

RESIDUALS = [name for name in attzoo.names() if attzoo.info(name).residual]
RESIDUAL = pytest.mark.parametrize("name", RESIDUALS)


@RESIDUAL
def test_shortcut_is_added_before_the_activation(name):
    block = attzoo.info(name).create(8, backend="torch")
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    y = block(x)
    assert torch.equal(block(x, shortcut), y + shortcut)
    assert torch.equal(block(x, shortcut, "relu"), torch.relu(y + shortcut))
    assert torch.equal(block(x, act="relu"), torch.relu(y))


@RESIDUAL
@pytest.mark.parametrize("size", [6, 300])   # 300 is large enough for the form for CPUs
def test_in_place_operations_change_neither_inputs_nor_gradients(name, size):
    """First and second derivatives equal those of separate operations."""
    block = attzoo.info(name).create(8, backend="torch").double()
    x, shortcut, dy = torch.randn(3, 2, 8, size, 30, dtype=torch.float64).unbind()
    tensors = [x.clone().requires_grad_(), shortcut.clone().requires_grad_(), *block.parameters()]

    def second_derivatives(gradients):
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), tensors)

    y = block(*tensors[:2], "relu")
    gradients = torch.autograd.grad(y, tensors, dy, create_graph=True)
    expected_y = torch.relu(block(tensors[0]) + tensors[1])
    expected = torch.autograd.grad(expected_y, tensors, dy, create_graph=True)
    assert torch.equal(y, expected_y)
    assert torch.equal(tensors[0], x)
    assert torch.equal(tensors[1], shortcut)
    assert_close(gradients, expected)
    assert_close(second_derivatives(gradients), second_derivatives(expected))


@pytest.mark.parametrize("name", [name for name in RESIDUALS if not attzoo.get(name, backend="torch").parts])
def test_shortcut_and_activation_are_computed_in_place(name, monkeypatch):
    block, x, products = attzoo.info(name).create(8, backend="torch"), torch.randn(2, 8, 5, 6), []
    plain = type(block).plain   # SK has its own
    monkeypatch.setattr(type(block), "plain", lambda block, x: products.append(plain(block, x)) or products[-1])
    y = block(x, x, "relu")
    assert y.data_ptr() == products[0].data_ptr()


def save_output_in_hook(cbam, saved):
    """Register a hook that saves the output of the spatial attention."""
    cbam.spatial.register_forward_hook(lambda module, xs, y: saved.append((y, y.clone())))


def add_backward_hook(cbam, saved):
    """Register a backward hook on the spatial attention."""
    cbam.spatial.register_full_backward_hook(lambda *args: None)


def replace_spatial_attention(cbam, saved):
    """Replace the spatial attention by a sigmoid."""
    cbam.spatial = nn.Sigmoid()


def replace_both_parts(cbam, saved):
    """Replace both parts of CBAM by identities."""
    cbam.channel = cbam.spatial = nn.Identity()


CHANGES = [save_output_in_hook, add_backward_hook, replace_spatial_attention, replace_both_parts]


@pytest.mark.parametrize("change", CHANGES)
def test_output_of_the_spatial_attention_of_cbam_is_not_overwritten(change):
    block, saved = attzoo.create("cbam", 8, backend="torch"), []
    change(block, saved)
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    leaf = x.clone().requires_grad_()
    y = block(leaf * 1, shortcut, "relu")
    assert_close(y, torch.relu(block(x) + shortcut))
    y.sum().backward()
    for output, saved_copy in saved:
        assert torch.equal(output, saved_copy)
    original = x.clone()
    block(x, shortcut, "relu")
    assert torch.equal(x, original)


@RESIDUAL
def test_checkpoint_may_save_the_product(name):
    block = attzoo.info(name).create(8, backend="torch")
    block.train(not list(block.buffers()))   # torch refuses to save tensors that a batch norm updates
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    x.requires_grad_()

    def save_all(context, operation, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    y = checkpoint(block, x, shortcut, "relu", use_reentrant=False,
                   context_fn=partial(create_selective_checkpoint_contexts, save_all))   # fmt: skip
    (actual,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(block(x, shortcut, "relu").sum(), x)
    assert relative_error(actual, expected) < 1e-6


@RESIDUAL
def test_shortcut_works_under_vmap_and_autocast(name):
    block = attzoo.info(name).create(8, backend="torch")
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    y = block(x, shortcut, "relu")
    outputs = torch.func.vmap(lambda shortcut: block(x, shortcut, "relu"))(torch.stack([shortcut, 2 * shortcut]))
    assert_close(outputs[0], y)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x.bfloat16(), shortcut, "relu").dtype == torch.float32


@RESIDUAL
def test_bad_shortcut_or_activation_raises(name):
    block = attzoo.info(name).create(8, backend="torch")
    x = torch.randn(2, 8, 5, 6)
    with pytest.raises(ValueError, match=r"expected a shortcut of x's shape, \(2, 8, 5, 6\), got \(2, 8, 5, 1\)"):
        block(x, x[..., :1])
    with pytest.raises(TypeError, match=r"^expected a torch\.Tensor as shortcut, got str$"):
        block(x, "relu")
    with pytest.raises(TypeError, match=r"expected a shortcut of x's dtype, torch\.float32, got torch\.float64"):
        block(x, x.double())
    with pytest.raises(ValueError, match=r"^expected a shortcut on x's device, cpu, got one on meta: move it first$"):
        block(x, x.to("meta"))
    with pytest.raises(ValueError, match=r"^act must be one of None, 'relu', got 'gelu'$"):
        block(x, act="gelu")
    with pytest.raises(ValueError, match=r"^act must be one of None, 'relu', got \['relu'\]$"):
        block(x, act=["relu"])
    with pytest.raises(TypeError, match=r"^expected a dense tensor, got one of layout torch\.sparse_coo: "):
        block(x, x.to_sparse())
    with pytest.raises(TypeError, match=r"^expected a dense tensor, got a nested one: "):
        block(x, torch.nested.nested_tensor([*x], layout=torch.jagged))
