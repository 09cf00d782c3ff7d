"""Torch blocks live with the rest of torch: copies, autograd, memory, precision, parallel training, exporters."""

import copy
import io
import math
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from datetime import timedelta
from functools import partial

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")   # cuBLAS is deterministic only with this

import numpy as np
import pytest
import torch
from operations import Large, Operations
from samples import NET, SAMPLES, assert_starts_as, is_clear_of_zero, network, pooled_starts, pooling, seed_of
from torch import nn
from torch.export import Dim
from torch.testing import assert_close
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import attzoo
from attzoo.blocks.torch import Block
from attzoo.contract import older
from attzoo.ops.torch import crop, find, pool, repeat

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}   # rank -> memory format
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))

every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
normed = pytest.mark.parametrize("name", [name for name, s in SAMPLES.items() if s.config.get("norm")])
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])


@pytest.fixture(autouse=True)
def _settings():
    """Global settings that tests here change are put back; convolutions on CUDA are exact."""
    threads = torch.get_num_threads()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compile_block():
    """torch.compile, with nothing left behind."""
    yield partial(torch.compile, fullgraph=True)
    torch.compiler.reset()


def build(sample, dtype=torch.float32, device="cpu", seed=0):
    """A block in eval mode, its running statistics away from their start, its relu's inputs away from zero."""
    for attempt in range(100):
        torch.manual_seed(seed + 1000 * attempt)
        block = sample.create("torch").eval()
        for name, buffer in block.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        if is_clear_of_zero(block.spec, attzoo.weights(block), sample.arrays()):
            return block.to(device, dtype)
    raise ValueError(f"expected a start of {sample} whose relus meet no number near zero, got none in 100")


def inputs(sample, dtype=torch.float32, device="cpu", **kwargs):
    return [torch.from_numpy(x).to(device, dtype) for x in sample.arrays(**kwargs)]


def passes(block, xs):
    """Output, then the gradient of a fixed weighted sum of it for every input and parameter."""
    xs = [x.detach().requires_grad_() for x in xs]
    y = block(*xs)
    cotangent = torch.empty_like(y).copy_(torch.linspace(-1, 1, y.numel()).reshape(y.shape))   # laid out as y
    return [y, *torch.autograd.grad(y, [*xs, *block.parameters()], cotangent)]


def off(got, wanted):
    """Largest difference, relative to the largest wanted value."""
    assert got.shape == wanted.shape
    got, wanted = got.detach().cpu().double(), wanted.detach().cpu().double()
    difference, scale = float((got - wanted).abs().max()), float(wanted.abs().max())
    assert math.isfinite(difference)
    return difference / (scale or 1)


class Net(nn.Module):
    """The network of all blocks: (N, 8, H, W), (N, 6, G, G) -> (N, 8, H, W)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 3, padding=1)
        self.blocks, self.gates = nn.Sequential(), nn.ModuleDict()
        for name, sample in network().items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(name))
                (self.blocks if len(sample.shapes) == 1 else self.gates).add_module(name, sample.create("torch"))

    def forward(self, x, g):
        x = self.blocks(self.stem(x))
        for gate in self.gates.values():
            x = gate(x, *[g] * (len(gate.spec.inputs) - 1))
        return x


class BranchOnSize(nn.Module):
    """What no body may do: exporters keep the branch that they happened to see."""

    def forward(self, x):
        return x * 2 if x.shape[-1] == 5 else x * 3


# ---- copies and state ----------------------------------------------------------------------------------


@pytest.mark.case68
@every_sample
def test_deepcopy(sample):
    block, xs = build(sample), inputs(sample)
    twin = copy.deepcopy(block)
    assert twin.spec == block.spec
    assert torch.equal(twin(*xs), block(*xs))
    before = block(*xs)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(block(*xs), before)
    assert not torch.equal(twin(*xs), before)


@pytest.mark.case69
@every_sample
def test_pickle(sample):
    block, xs = build(sample), inputs(sample)
    twin = pickle.loads(pickle.dumps(block))
    assert twin.spec == block.spec
    assert not twin.training
    assert torch.equal(twin(*xs), block(*xs))


@pytest.mark.case83
@every_sample
def test_state_dict_both_ways(sample):
    block, other, xs = build(sample), build(sample, seed=1), inputs(sample)
    here, there = block(*xs), other(*xs)
    assert not torch.equal(here, there)
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    state, back = torch.load(io.BytesIO(file.getvalue()), weights_only=True), copy.deepcopy(other.state_dict())
    other.load_state_dict(state, strict=True)
    block.load_state_dict(back, strict=True)
    assert torch.equal(other(*xs), here)
    assert torch.equal(block(*xs), there)


@every_sample
def test_state_dict_speaks_canonical_names(sample):
    block = build(sample)
    names = [name.replace(".running_", ".") for name in block.state_dict() if not name.endswith("num_batches_tracked")]
    assert sorted(names) == sorted(block.spec.weights)


@every_sample
def test_state_dict_is_strict(sample):
    block = build(sample)
    state = block.state_dict()
    name, tensor = next(iter(state.items()))
    for wrong, says in (
        ({k: v for k, v in state.items() if k != name}, "Missing key"),
        (state | {"surplus": tensor}, "Unexpected key"),
        (state | {name: torch.zeros(7, 7, 7)}, "size mismatch"),
    ):
        with pytest.raises(RuntimeError, match=says):
            block.load_state_dict(wrong)


@pytest.mark.case78
@every_sample
def test_meta_device(sample):
    with torch.device("meta"):
        block = sample.create("torch")
        y = block(*(torch.empty(s) for s in sample.shapes))
    assert y.is_meta
    assert y.shape == sample.shapes[0]
    torch.manual_seed(0)
    block = block.to_empty(device="cpu")
    block.reset_parameters()
    direct = sample.create("torch")
    torch.manual_seed(0)
    direct.reset_parameters()
    for name, tensor in direct.state_dict().items():
        assert torch.equal(block.state_dict()[name], tensor), name


# ---- starts --------------------------------------------------------------------------------------------


@every_sample
def test_starts_as_the_spec_says(sample):
    torch.manual_seed(0)
    arrays = pooled_starts(sample, attzoo.weights, "torch")
    for name, weight in sample.create("numpy").weights.items():
        assert_starts_as(arrays[name], weight)


@every_sample
def test_reset_parameters_is_a_fresh_start(sample):
    block = build(sample).train()
    block(*inputs(sample))   # running statistics move
    torch.manual_seed(3)
    block.reset_parameters()
    first = copy.deepcopy(block.state_dict())
    torch.manual_seed(3)
    block.reset_parameters()
    for name, tensor in block.state_dict().items():
        assert torch.equal(first[name], tensor)
        assert not name.endswith("num_batches_tracked") or tensor == 0
    for name, weight in block.spec.weights.items():
        if weight.start == "constant":
            assert (find(block, name) == weight.center).all()


# ---- autograd ------------------------------------------------------------------------------------------


@pytest.mark.case53
@every_sample
def test_input_not_changed(sample):
    block, xs = build(sample).train(), inputs(sample)
    before = [x.clone() for x in xs]
    passes(block, xs)
    assert all(torch.equal(x, b) for x, b in zip(xs, before, strict=True))


@pytest.mark.case54
@every_sample
def test_requires_grad_false(sample):
    block, xs = build(sample).requires_grad_(False), inputs(sample)
    assert not block(*xs).requires_grad
    xs[0].requires_grad_()
    block(*xs).sum().backward()
    assert xs[0].grad.abs().max() > 0
    assert all(p.grad is None for p in block.parameters())


def functional(sample):
    """A block as a function of its inputs and parameters, and small float64 ones to call it with."""
    block = build(sample, torch.float64)
    names = [name for name, _ in block.named_parameters()]
    tensors = [*inputs(sample, torch.float64), *(p.detach() for p in block.parameters())]

    def call(*tensors):
        n = len(sample.shapes)
        return torch.func.functional_call(block, dict(zip(names, tensors[n:], strict=True)), tensors[:n])

    return block, call, [t.requires_grad_() for t in tensors]


@pytest.mark.case55
@every_sample
def test_gradcheck(sample):
    _, call, tensors = functional(sample)
    assert torch.autograd.gradcheck(call, tensors)


@pytest.mark.case55
@normed
def test_gradcheck_in_training(name):
    block, call, tensors = functional(SAMPLES[name])
    block.train()
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


@pytest.mark.case56
@every_sample
def test_gradgradcheck(sample):
    _, call, tensors = functional(sample)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.case57
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_sample
def test_no_grad(sample, mode):
    block, xs = build(sample), inputs(sample)
    with mode():
        y = block(*xs)
    assert not y.requires_grad
    assert torch.equal(y, block(*xs))


@pytest.mark.case58
@every_sample
def test_every_parameter_gets_a_gradient(sample):
    block, xs = build(sample), inputs(sample)   # in training a norm would cancel the bias before it
    block(*xs).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.case59
@every_sample
def test_vmap(sample):
    block = build(sample, torch.float64)
    sets = [inputs(sample, torch.float64, seed=seed) for seed in range(3)]
    y = torch.func.vmap(block)(*(torch.stack(xs) for xs in zip(*sets, strict=True)))
    for one, xs in zip(y, sets, strict=True):
        assert_close(one, block(*xs), rtol=1e-12, atol=1e-12)


@pytest.mark.case59
@every_sample
def test_vmap_of_gradients(sample):
    block, xs = build(sample, torch.float64), inputs(sample, torch.float64)
    parameters = dict(block.named_parameters())

    def loss(parameters, *xs):
        return torch.func.functional_call(block, parameters, tuple(x[None] for x in xs)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *(0,) * len(xs)))(parameters, *xs)
    block(*xs).square().sum().backward()
    for name, parameter in parameters.items():
        assert_close(each[name].sum(0), parameter.grad, rtol=1e-10, atol=1e-10)


@every_sample
def test_checkpoint(sample):
    block, xs = build(sample), inputs(sample)

    def recomputed(*xs):
        return torch.utils.checkpoint.checkpoint(block, *xs, use_reentrant=False)

    recomputed.parameters = block.parameters
    for got, wanted in zip(passes(recomputed, xs), passes(block, xs), strict=True):
        assert torch.equal(got, wanted)


# ---- memory --------------------------------------------------------------------------------------------


@pytest.mark.case49
@every_sample
def test_non_contiguous(sample):
    block, xs = build(sample, torch.float64), inputs(sample, torch.float64)
    wide = [torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0].mT.contiguous().mT for x in xs]
    assert not any(x.is_contiguous() for x in wide)
    for got, wanted in zip(passes(block, wide), passes(block, xs), strict=True):
        assert off(got, wanted) < 1e-12


@pytest.mark.case51
@every_sample
def test_expanded(sample):
    block, xs = build(sample, torch.float64), inputs(sample, torch.float64)
    flat = [x[:1, :, :1].expand(x.shape) for x in xs]
    assert all(x.stride()[0] == x.stride()[2] == 0 for x in flat)
    for got, wanted in zip(passes(block, flat), passes(block, [x.contiguous() for x in flat]), strict=True):
        assert off(got, wanted) < 1e-12


@pytest.mark.case50
@devices
@every_sample
def test_channels_last_is_kept(sample, device):
    if (rank := len(sample.shapes[0])) == 3:
        return   # torch has no such format for one spatial axis
    layout = CHANNELS_LAST[rank]
    block, xs = build(sample, device=device), inputs(sample, device=device)
    last = [x.to(memory_format=layout) for x in xs]
    got, wanted = passes(block, last), passes(block, xs)
    assert got[0].is_contiguous(memory_format=layout)
    assert not wanted[0].is_contiguous(memory_format=layout)
    assert got[1].is_contiguous(memory_format=layout)   # the gradient of x
    assert max(map(off, got, wanted)) < 1e-5
    again = passes(block.to(memory_format=layout), last)
    assert again[0].is_contiguous(memory_format=layout)
    assert max(map(off, again, wanted)) < 1e-5


def large(block, *given):
    """How many tensors of the size of x a training step makes, besides x and the gradient of y."""
    x, dy = given
    with Large(x) as seen:
        torch.autograd.grad(block(x), [x, *block.parameters()], dy)
    return len(seen.made.keys() - {tensor.untyped_storage().data_ptr() for tensor in given})


PLAIN = [name for name in pooling() if attzoo.get(name, backend="torch").cpu_form is None]
MULTIPLY = [name for name in PLAIN if attzoo.info(name).spec.combination == "multiply"]


@pytest.mark.parametrize("name", MULTIPLY)
def test_the_gradient_of_the_average_is_not_written_out(name):
    block = attzoo.create(name, 8, backend="torch")
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    assert large(block, x, torch.randn(x.shape)) == 4   # y, both gradients of a product, and the sum for x


# ---- modes ---------------------------------------------------------------------------------------------


@pytest.mark.case60
@every_sample
def test_train_equals_eval_without_norm(sample):
    block, xs = build(sample), inputs(sample)
    has_norm = bool(sample.config.get("norm"))
    assert torch.equal(block.eval()(*xs), block.train()(*xs)) is not has_norm
    assert bool(list(block.buffers())) is has_norm


@pytest.mark.case60
@normed
def test_running_statistics_move_in_training_only(name):
    block, xs = build(SAMPLES[name]), inputs(SAMPLES[name])
    before = copy.deepcopy(block.state_dict())
    block(*xs)
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())
    block.train()(*xs)
    for k, v in block.state_dict().items():
        assert torch.equal(v, before[k]) is not k.endswith(("running_mean", "running_var", "num_batches_tracked")), k


@pytest.mark.case61
@normed
def test_one_value_per_channel_has_no_statistics(name):
    sample = SAMPLES[name]
    block = build(sample).train()
    steps = getattr(block.spec, "strides", (1,) * (len(sample.shapes[0]) - 2))
    x, *g = (torch.ones(1, s[1], *steps) for s in sample.shapes)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(x, *g)
    assert block.eval()(x, *g).isfinite().all()


# ---- determinism ---------------------------------------------------------------------------------------


@pytest.mark.case62
@devices
@every_sample
def test_rerun_is_bitwise_equal(sample, device):
    block, xs = build(sample, device=device).train(), inputs(sample, device=device)
    torch.use_deterministic_algorithms(True)
    first = passes(block, xs)
    for got, wanted in zip(passes(block, xs), first, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.case63
@every_sample
def test_threads_agree(sample):
    block = build(sample, torch.float64)
    xs = [nn.functional.interpolate(x, scale_factor=6) for x in inputs(sample, torch.float64)]   # enough to share out
    torch.set_num_threads(1)
    wanted = passes(block, xs)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        assert max(map(off, passes(block, xs), wanted)) < 1e-11


@pytest.mark.case64
@every_sample
def test_batch_invariance(sample):
    block, xs = build(sample), inputs(sample, more=3)
    y = block(*xs)
    for i in range(len(y)):
        assert off(block(*(x[i : i + 1] for x in xs)), y[i : i + 1]) < 1e-5


# what torch.use_deterministic_algorithms of 2.13 lists as throwing on CUDA, in the names of its operations
THROWING = {
    *(f"upsample_{kind}_backward" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "avg_pool3d_backward",
    *(f"max_unpool{n}d" for n in (2, 3)), *(f"reflection_pad{n}d_backward" for n in (1, 2, 3)),
    *(f"fractional_max_pool{n}d_backward" for n in (2, 3)), *(f"grid_sampler_{n}d_backward" for n in (2, 3)),
    "adaptive_max_pool2d_backward", "put_", "histc", "bincount", "median", "cumsum",
}   # fmt: skip


def operations(block, xs):
    """The operations of a deterministic training pass off the CPU, where some have another form: CUDA's."""
    torch.use_deterministic_algorithms(True)
    with Operations() as seen:
        y = block.to("meta")(*(x.to("meta").requires_grad_() for x in xs))
        y.backward(torch.empty_like(y))
    return set(seen.names)


@pytest.mark.case65
@every_sample
def test_no_operation_that_throws_in_deterministic_mode(sample):
    block, throwing = build(sample).train(), THROWING
    if older(torch.__version__, "2.11"):   # which has bilinear interpolation's other form on CUDA alone
        throwing = throwing - {"upsample_bilinear2d_backward"}
    for more in (0, 1):
        assert not operations(block, inputs(sample, more=more)) & throwing


@pytest.mark.case65
def test_an_operation_that_throws_is_seen():
    up = nn.Upsample(7, mode="linear")
    assert operations(up, [torch.ones(1, 1, 4)]) & THROWING == {"upsample_linear1d_backward"}
    assert operations(nn.AdaptiveMaxPool2d(2), [torch.ones(1, 1, 4, 4)]) & THROWING == {"adaptive_max_pool2d_backward"}


# ---- precision -----------------------------------------------------------------------------------------

LOW = pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=["fp16", "bf16"])


@devices
@every_sample
def test_float32_agrees_with_float64(sample, device):
    wanted = passes(build(sample, torch.float64), inputs(sample, torch.float64))
    got = passes(build(sample, device=device).float(), inputs(sample, device=device))
    assert all(g.device.type == device for g in got)
    assert max(map(off, got, wanted)) < 1e-5


@pytest.mark.case38
@LOW
@devices
@every_sample
def test_autocast(sample, device, dtype, bound):
    block, xs = build(sample, device=device), inputs(sample, device=device)
    wanted = build(sample, torch.float64)(*inputs(sample, torch.float64))
    with torch.autocast(device, dtype):
        y = block(*xs)
        low = block(*(x.to(dtype) for x in xs))   # as a convolution before the block would hand them over
    # x * attention(x) keeps float32; an output transform is a convolution, which autocast runs low
    assert y.dtype == (dtype if sample.config.get("output_transform") else torch.float32)
    assert low.dtype == dtype
    assert 0 < off(y, wanted) < bound
    assert 0 < off(low, wanted) < bound
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in block.parameters())


@LOW
@devices
@every_sample
def test_low_precision_module(sample, device, dtype, bound):
    block, xs = build(sample, device=device).to(dtype), inputs(sample, dtype, device)
    y, *gradients = passes(block, xs)
    assert {y.dtype, *(g.dtype for g in gradients)} == {dtype}
    assert 0 < off(y, build(sample, torch.float64)(*inputs(sample, torch.float64))) < bound
    assert all(g.isfinite().all() for g in gradients)


# ---- parallel training ---------------------------------------------------------------------------------


def net_batch():
    torch.manual_seed(0)
    batch = (torch.randn(4, *shape, dtype=torch.float64) for shape in ((8, 6, 5), (6, 2, 3), (8, 6, 5)))
    return Net().double().eval(), *batch   # in training, norms would tell half a batch from the whole


def train(net, x, g, y):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x, g), y).backward()
        optimizer.step()


def train_distributed(rank, store, result):
    """One of two processes, on its half of the batch; the gradients are averaged."""
    limit = timedelta(seconds=100)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=limit)
    net, *batch = net_batch()
    train(nn.parallel.DistributedDataParallel(net), *(t[rank::2] for t in batch))
    torch.save(net.state_dict(), f"{result}{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.case66
def test_two_processes_train_as_one(tmp_path):
    net, *batch = net_batch()
    start = copy.deepcopy(net.state_dict())
    train(net, *batch)
    torch.multiprocessing.spawn(train_distributed, (tmp_path / "store", tmp_path / "rank"), nprocs=2)
    for rank in range(2):
        trained = torch.load(tmp_path / f"rank{rank}", weights_only=True)
        for name, wanted in net.state_dict().items():
            assert_close(trained[name], wanted, rtol=1e-10, atol=1e-12)
            assert name not in dict(net.named_parameters()) or not torch.equal(wanted, start[name]), name


@pytest.mark.case67
@every_sample
def test_data_parallel_passes_through(sample):
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
        for got, wanted in zip(loader, data, strict=True):
            torch.testing.assert_close(got[0], wanted)
    print("done")
"""


@pytest.mark.case70
@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_block_inside_worker_processes(tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["done"], run.stderr


# ---- exporters -----------------------------------------------------------------------------------------


def dynamic(xs):
    """Every axis but the channels may change."""
    return tuple({axis: Dim.DYNAMIC for axis in range(x.ndim) if axis != 1} for x in xs)


def assert_same_at_other_sizes(got, block, sample):
    """At the sizes seen and at three others: each axis meets odd and even ones, x and g change independently."""
    for more in (0, 1, 2, 3):
        xs = inputs(sample, more=more)
        assert off(got(*xs), block(*xs)) < 1e-5


@pytest.mark.case72
@every_sample
def test_export(sample):
    block, xs = build(sample), inputs(sample)
    program = torch.export.export(block, tuple(xs), dynamic_shapes=dynamic(xs))
    assert_same_at_other_sizes(program.module(), block, sample)


@pytest.mark.case72
def test_export_of_a_gate_with_named_sizes():
    sample = SAMPLES["attention_gate-coarse"]
    block, xs = build(sample), inputs(sample)
    n, h, w, gh, gw = (Dim(name, min=low, max=512) for name, low in zip("nhwij", (2, 4, 4, 2, 2), strict=True))
    shapes = {"x": {0: n, 2: h, 3: w}, "g": {0: n, 2: gh, 3: gw}}
    program = torch.export.export(block, tuple(xs), dynamic_shapes=shapes)
    assert_same_at_other_sizes(program.module(), block, sample)


@pytest.mark.case72
def test_export_refuses_a_branch_on_a_size():
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
        torch.export.export(BranchOnSize(), (torch.ones(2, 3, 5),), dynamic_shapes=({2: Dim.DYNAMIC},))


@pytest.mark.case73
@every_sample
def test_compile_without_graph_breaks(sample, compile_block):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()   # compiles to the graph as it stands
    block = build(sample, torch.float64)
    compiled = compile_block(block, backend=counter)
    for more in (0, 1, 2, 3):
        xs = inputs(sample, torch.float64, more=more)
        assert max(map(off, passes(compiled, xs), passes(block, xs))) < 1e-12
    assert counter.frame_count <= 2 + len(sample.shapes) // 2   # first size, any size; equal sizes skip the resampling


@pytest.mark.case73
def test_compile_backward_ahead_of_time(compile_block):
    net = Net().double()
    compiled = compile_block(copy.deepcopy(net), backend="aot_eager")
    for more in (0, 1):
        xs = inputs(NET, torch.float64, more=more)
        for got, wanted in zip(passes(compiled, xs), passes(net, xs), strict=True):
            assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    for got, wanted in zip(compiled.buffers(), net.buffers(), strict=True):
        assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.case73
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++ on a CPU")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")   # torch's own use
def test_compile_with_inductor(compile_block):
    sample = SAMPLES["eca"]
    block = build(sample)
    compiled = compile_block(block, dynamic=True)
    with torch.no_grad():
        assert_same_at_other_sizes(compiled, block, sample)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++ on a CPU")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")   # torch's own use
def test_pooled_pixels_repeated_compile_with_inductor_for_all_sizes():
    """As in a U-Net: torch's compiler has no remainder of a negative number for the index that they are read at."""

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
def test_trace(sample):
    block, xs = build(sample), inputs(sample)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")            # torch would rather have us export
        warnings.simplefilter("ignore", torch.jit.TracerWarning)   # the refusal of wrong inputs is not traced, rightly
        traced = torch.jit.trace(block, tuple(xs))
    assert_same_at_other_sizes(traced, block, sample)


@pytest.mark.case75
def test_trace_of_a_branch_on_a_size_is_caught():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(BranchOnSize(), torch.ones(2, 8, 6, 5))
    with pytest.raises(AssertionError):
        assert_same_at_other_sizes(traced, BranchOnSize(), SAMPLES["eca"])


@pytest.mark.case74
@every_sample
def test_script_refuses(sample):
    """TorchScript cannot express a spec: an error, never a module that computes something else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")
        with pytest.raises((RuntimeError, ValueError)):
            torch.jit.script(build(sample))


class LeafTracer(torch.fx.Tracer):
    """Keeps our blocks whole, as torch.fx keeps torch's own layers."""

    def is_leaf_module(self, module, qualified_name):
        return isinstance(module, Block) or super().is_leaf_module(module, qualified_name)


@pytest.mark.case76
def test_fx_with_blocks_as_leaves():
    net = Net().eval()
    graph = LeafTracer().trace(net)
    paths = [f"{'blocks' if len(sample.shapes) == 1 else 'gates'}.{name}" for name, sample in network().items()]
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["stem", *paths]
    traced = torch.fx.GraphModule(net, graph)
    assert_same_at_other_sizes(traced, net, NET)


@pytest.mark.case77
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # torch.onnx's own
@pytest.mark.parametrize("name", ["net", *(name for name, sample in SAMPLES.items() if len(sample.shapes[0]) != 4)])
def test_onnx(name, tmp_path):
    import onnxruntime

    sample = (SAMPLES | {"net": NET})[name]
    resamples = len(sample.shapes) > 1 and sample.config.get("interpolation", "linear") == "linear"
    if older(torch.__version__, "2.7") and resamples:
        pytest.skip("torch 2.6 exports no bilinear F.interpolate to a size that is free, in a plain module either")
    block, xs = Net().eval() if name == "net" else build(sample), inputs(sample)
    file = tmp_path / "block.onnx"
    torch.onnx.export(block, tuple(xs), file, dynamo=True, dynamic_shapes=dynamic(xs), verbose=False)
    session = onnxruntime.InferenceSession(file)
    names = [i.name for i in session.get_inputs()]

    def run(*xs):
        return torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in xs), strict=True)))[0])

    assert_same_at_other_sizes(run, block, sample)


# ---- tools ---------------------------------------------------------------------------------------------


@pytest.mark.case71
@every_sample
def test_hooks_run(sample):
    block, xs = build(sample), inputs(sample)
    before, after, back = [], [], []
    for module in block.modules():
        module.register_forward_pre_hook(lambda module, args: before.append(module))
        module.register_forward_hook(lambda module, args, output: after.append((module, output)))
        module.register_full_backward_hook(lambda module, inner, outer: back.append(module))
    y = block(*(x.requires_grad_() for x in xs))
    y.sum().backward()
    assert set(before) == {module for module, _ in after} == set(back) == set(block.modules())
    assert after[-1][0] is block
    assert torch.equal(after[-1][1], y)


@every_sample
def test_flop_counter_agrees_with_macs(sample):
    from torch.utils.flop_counter import FlopCounterMode

    block, xs = build(sample), inputs(sample, more=1)
    with FlopCounterMode(display=False) as counter:
        block(*xs)
    assert counter.get_total_flops() == 2 * block.spec.macs(*(x.shape for x in xs))


@every_sample
def test_parameter_count(sample):
    block = build(sample)
    count = sum(weight.size for weight in block.spec.weights.values() if weight.trainable)
    assert nn.utils.parameters_to_vector(block.parameters()).numel() == count


@normed
def test_sync_batch_norm(name):
    block, xs = build(SAMPLES[name]), inputs(SAMPLES[name])
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert off(synced(*xs), block(*xs)) < 1e-6
    arrays = attzoo.weights(synced)
    assert all(np.array_equal(arrays[name], array) for name, array in attzoo.weights(block).items())


def test_weight_norm():
    block, xs = build(SAMPLES["se"]), inputs(SAMPLES["se"])
    wanted = block(*xs)
    nn.utils.parametrizations.weight_norm(block.squeeze)
    assert off(block(*xs), wanted) < 1e-6
    assert_close(torch.from_numpy(attzoo.weights(block)["squeeze.weight"]), block.squeeze.weight.detach())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_sample
def test_cuda_graph(sample):
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
    fresh = inputs(sample, device="cuda", seed=1)
    for tensor, new in zip(static, fresh, strict=True):
        tensor.copy_(new)
    graph.replay()
    assert off(y, block(*fresh)) < 1e-6


# ---- at the end of a residual block ----------------------------------------------------------------------------------

RESIDUALS = [name for name in attzoo.names() if attzoo.info(name).residual]
RESIDUAL = pytest.mark.parametrize("name", RESIDUALS)


@RESIDUAL
def test_a_shortcut_is_added_and_an_activation_follows(name):
    block = attzoo.create(name, 8, backend="torch")
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    y = block(x)
    assert torch.equal(block(x, shortcut), y + shortcut)
    assert torch.equal(block(x, shortcut, "relu"), torch.relu(y + shortcut))
    assert torch.equal(block(x, act="relu"), torch.relu(y))


@RESIDUAL
@pytest.mark.parametrize("size", [6, 300])   # few numbers, and so many that a CPU's own passes take them
def test_what_is_written_over_is_missed_by_nobody(name, size):
    """Neither inputs nor any gradient: those of a sum that nothing is written over are the same."""
    block = attzoo.create(name, 8, backend="torch").double()
    x, shortcut, dy = torch.randn(3, 2, 8, size, 30, dtype=torch.float64).unbind()
    given = [x.clone().requires_grad_(), shortcut.clone().requires_grad_(), *block.parameters()]
    y = block(*given[:2], "relu")
    found = torch.autograd.grad(y, given, dy, create_graph=True)
    wanted_y = torch.relu(block(given[0]) + given[1])
    wanted = torch.autograd.grad(wanted_y, given, dy, create_graph=True)
    assert torch.equal(y, wanted_y)
    assert torch.equal(given[0], x)
    assert torch.equal(given[1], shortcut)
    for got, w in zip(found, wanted, strict=True):
        assert_close(got, w)
    twice, wanted = (torch.autograd.grad(sum(d.square().sum() for d in ds), given) for ds in (found, wanted))
    for got, w in zip(twice, wanted, strict=True):
        assert_close(got, w)


@pytest.mark.parametrize("name", [name for name in RESIDUALS if not attzoo.get(name, backend="torch").parts])
def test_the_end_of_a_residual_block_takes_no_room_beside_its_output(name, monkeypatch):
    block, x, products, real = attzoo.create(name, 8, backend="torch"), torch.randn(2, 8, 5, 6), [], Block.plain
    monkeypatch.setattr(Block, "plain", lambda block, x: products.append(real(block, x)) or products[-1])
    y = block(x, x, "relu")
    assert y.data_ptr() == products[0].data_ptr()


def hears(cbam, kept):
    cbam.spatial.register_forward_hook(lambda module, xs, y: kept.append((y, y.clone())))


def hears_gradients(cbam, kept):
    cbam.spatial.register_full_backward_hook(lambda *args: None)


def replaces(cbam, kept):
    cbam.spatial = nn.Sigmoid()


def leaves_out(cbam, kept):
    cbam.channel = cbam.spatial = nn.Identity()


@pytest.mark.parametrize("change", [hears, hears_gradients, replaces, leaves_out])
def test_what_a_part_of_cbam_gives_is_not_written_over(change):
    block, kept = attzoo.create("cbam", 8, backend="torch"), []
    change(block, kept)
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    given = x.clone().requires_grad_()
    y = block(given * 1, shortcut, "relu")
    assert_close(y, torch.relu(block(x) + shortcut))
    y.sum().backward()
    for y, then in kept:
        assert torch.equal(y, then)
    before = x.clone()
    block(x, shortcut, "relu")
    assert torch.equal(x, before)


@RESIDUAL
def test_a_checkpoint_may_keep_the_product(name):
    block = attzoo.create(name, 8, backend="torch")
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    x.requires_grad_()

    def keep(context, operation, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    y = checkpoint(block, x, shortcut, "relu", use_reentrant=False,
                   context_fn=partial(create_selective_checkpoint_contexts, keep))   # fmt: skip
    (got,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(block(x, shortcut, "relu").sum(), x)
    assert off(got, wanted) < 1e-6


@RESIDUAL
def test_where_nothing_may_be_written_over_the_numbers_are_the_same(name):
    block = attzoo.create(name, 8, backend="torch")
    x, shortcut = torch.randn(2, 2, 8, 5, 6).unbind()
    y = block(x, shortcut, "relu")
    among = torch.func.vmap(lambda end: block(x, end, "relu"))(torch.stack([shortcut, 2 * shortcut]))
    assert_close(among[0], y)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x.bfloat16(), shortcut, "relu").dtype == torch.float32


@RESIDUAL
def test_a_shortcut_that_is_none_is_refused(name):
    block = attzoo.create(name, 8, backend="torch")
    x = torch.randn(2, 8, 5, 6)
    with pytest.raises(ValueError, match=r"expected a shortcut of x's shape, \(2, 8, 5, 6\), got \(2, 8, 5, 1\)"):
        block(x, x[..., :1])
    with pytest.raises(TypeError, match=r"^expected a torch\.Tensor as shortcut, got str$"):
        block(x, "relu")
    with pytest.raises(TypeError, match=r"expected a shortcut of x's dtype, torch\.float32, got torch\.float64"):
        block(x, x.double())
    with pytest.raises(ValueError, match=r"^expected a shortcut on x's device, cpu, got one on meta$"):
        block(x, x.to("meta"))
    with pytest.raises(ValueError, match=r"^act must be one of None, 'relu', got 'gelu'$"):
        block(x, act="gelu")
    with pytest.raises(ValueError, match=r"^act must be one of None, 'relu', got \['relu'\]$"):
        block(x, act=["relu"])
    with pytest.raises(TypeError, match=r"^expected a dense tensor, got one of layout torch\.sparse_coo: "):
        block(x, x.to_sparse())
    with pytest.raises(TypeError, match=r"^expected a dense tensor, got a nested one: "):
        block(x, torch.nested.nested_tensor([*x], layout=torch.jagged))
