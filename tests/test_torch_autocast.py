"""Under autocast, on a CPU and on a GPU, what takes the autocast dtype returns it, whatever the rank.

The two devices have different lists of operations that autocast runs in float32: on CUDA sums and interpolation, on a
CPU 3-D max pooling. Fake tensors have a device, a dtype and PyTorch's own autocast, but no numbers, so that CUDA's
rules are tested without a GPU.
"""

from contextlib import contextmanager

import pytest
import torch
from nets import NETS, create
from samples import SAMPLES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import attzoo
from attzoo.ops import torch as ops

devices = pytest.mark.parametrize("device", ["cpu", "cuda"])
low = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
ranks = pytest.mark.parametrize("dims", [1, 2, 3])
OPERATIONS = {
    "linear": lambda x: ops.resize(x, [2 * n - 1 for n in x.shape[2:]], "linear", False),
    "linear, corners aligned": lambda x: ops.resize(x, [2 * n - 1 for n in x.shape[2:]], "linear", True),
    "nearest": lambda x: ops.resize(x, [2 * n - 1 for n in x.shape[2:]], "nearest", False),
    "repeat": lambda x: ops.repeat(x, (2,) * (x.ndim - 2)),
    "pool": lambda x: ops.pool(x, (2,) * (x.ndim - 2)),
    "avg_pool": ops.avg_pool,
    "max_pool": ops.max_pool,
    "crop": lambda x: ops.crop(x, [n - 1 for n in x.shape[2:]]),
    "widen": lambda x: ops.widen(x, [n + 1 for n in x.shape[2:]]),
    "instance norm": ops.InstanceNorm(),
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "hard_sigmoid": ops.hard_sigmoid,
}


class Indexing(TorchFunctionMode):
    """Indexing gives the right shape, device and dtype: PyTorch's own asks for a driver of the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.Tensor.__getitem__:
            return function(*args, **(kwargs or {}))
        x, index = args
        shape = torch.empty(x.shape, device="meta")[index].shape
        return torch.empty(shape, dtype=x.dtype, device=x.device)


@contextmanager
def autocast(device, dtype):
    """Tensors that are made inside are fake, and autocast is on for the device, even where PyTorch has no CUDA."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    no_driver = torch.backends.cudnn.flags(enabled=False)   # which choosing among cuDNN's convolutions would ask for
    with FakeTensorMode(), Indexing(), no_driver, torch.no_grad(), attzoo.kernels("eager"):
        try:
            torch.set_autocast_enabled(device, True)
            torch.set_autocast_dtype(device, dtype)
            yield
        finally:
            torch.set_autocast_enabled(device, before[0])
            torch.set_autocast_dtype(device, before[1])
            torch.clear_autocast_cache()


def moved(module, device):
    """A module whose parameters and buffers are fake ones on the device."""
    for part in module.modules():
        for arrays in (part._parameters, part._buffers):
            for name, t in arrays.items():
                arrays[name] = None if t is None else torch.empty(t.shape, dtype=t.dtype, device=device)
    return module


@low
def test_autocast_has_the_rules_of_each_device(dtype):
    F = torch.nn.functional
    for device, summed, pooled in (("cuda", torch.float32, dtype), ("cpu", dtype, torch.float32)):
        with autocast(device, dtype):
            x, whole = (torch.empty(1, 4, 4, 4, device=device, dtype=dtype) for dtype in (dtype, torch.float32))
            assert x.device.type == device
            assert x.sum().dtype == F.interpolate(x, (5, 5)).dtype == summed
            assert F.max_pool3d(x, 2).dtype == pooled
            assert (whole @ whole).dtype == dtype


@devices
@low
@ranks
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_return_the_dtype_of_their_input(name, dims, dtype, device):
    with autocast(device, dtype):
        for given in (dtype, torch.float32):
            assert OPERATIONS[name](torch.empty(2, 3, *(4, 5, 6)[:dims], dtype=given, device=device)).dtype == given


@pytest.mark.case38
@devices
@low
@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_blocks(sample, dtype, device):
    """The product with a float32 input is float32, as PyTorch promotes; an output transform ends in a convolution."""
    whole = dtype if sample.config.get("output_transform") else torch.float32
    block = sample.create("torch").eval()
    with autocast(device, dtype):
        moved(block, device)
        for given, expected in ((dtype, dtype), (torch.float32, whole)):
            xs = [torch.empty(shape, dtype=given, device=device) for shape in sample.shapes]
            assert block(*xs).dtype == expected
            assert block.attention(*xs).dtype in (dtype, given)


@pytest.mark.case38
@devices
@pytest.mark.parametrize("name", NETS)
def test_networks_and_everything_within(name, device):
    found, dtype = {}, torch.bfloat16

    def note(path):
        return lambda module, inputs, output: found.update({path: {t.dtype for t in (*inputs, output)}})

    net = create(name, "torch").eval()
    with autocast(device, dtype):
        moved(net, device)
        assert net(torch.empty(NETS[name][1], device=device)).dtype == dtype
        for path, module in net.named_modules():
            module.register_forward_hook(note(path))
        net(torch.empty(NETS[name][1], dtype=dtype, device=device))
    assert {path: dtypes for path, dtypes in found.items() if dtypes != {dtype}} == {}
    assert len(found) > 10
