"""Under autocast on CPU and CUDA, operations and blocks return the dtype of their input, in every rank.

Autocast runs different operations in float32 on each device: sums and interpolation on CUDA, 3-D max pooling on a CPU.
The tests use fake tensors, which have a device and a dtype but no values, to test the rules of CUDA without a GPU.
"""

from contextlib import contextmanager

import pytest
import torch
from nets import NETS, create
from samples import SAMPLES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import attzoo
from attzoo.contract import by_name, is_older
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
    """Index fake CUDA tensors without a CUDA driver; the result has the right shape, device and dtype."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.Tensor.__getitem__:
            return function(*args, **(kwargs or {}))
        x, index = args
        shape = torch.empty(x.shape, device="meta")[index].shape
        return torch.empty(shape, dtype=x.dtype, device=x.device)


@contextmanager
def autocast(device, dtype):
    """Enable autocast for a device and fake tensors; this also works for CUDA if PyTorch has no CUDA."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    no_driver = torch.backends.cudnn.flags(enabled=False)   # cuDNN would need a driver
    with FakeTensorMode(), Indexing(), no_driver, torch.no_grad(), attzoo.kernels("eager"):
        try:
            torch.set_autocast_enabled(device, True)
            torch.set_autocast_dtype(device, dtype)
            yield
        except RuntimeError as err:
            if is_older(torch.__version__, "2.11") and "CUDA driver" in str(err):
                pytest.skip("needs a CUDA driver, or torch 2.11")   # to choose the kernel of a grouped convolution
            raise
        finally:
            torch.set_autocast_enabled(device, before[0])
            torch.set_autocast_dtype(device, before[1])
            torch.clear_autocast_cache()


def to_fake_device(module, device):
    """Replace all parameters and buffers of a module by fake tensors on the device; return the module."""
    for submodule in module.modules():
        for tensors in (submodule._parameters, submodule._buffers):
            for name, tensor in tensors.items():
                tensors[name] = None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return module


@low
def test_autocast_has_the_rules_of_each_device(dtype):
    F = torch.nn.functional
    for device, sum_dtype, pool_dtype in (("cuda", torch.float32, dtype), ("cpu", dtype, torch.float32)):
        with autocast(device, dtype):
            x, x32 = (torch.empty(1, 4, 4, 4, device=device, dtype=dtype) for dtype in (dtype, torch.float32))
            assert x.device.type == device
            assert x.sum().dtype == F.interpolate(x, (5, 5)).dtype == sum_dtype
            assert F.max_pool3d(x, 2).dtype == pool_dtype
            assert (x32 @ x32).dtype == dtype


@devices
@low
@ranks
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_return_the_dtype_of_their_input(name, dims, dtype, device):
    with autocast(device, dtype):
        for input_dtype in (dtype, torch.float32):
            x = torch.empty(2, 3, *(4, 5, 6)[:dims], dtype=input_dtype, device=device)
            assert OPERATIONS[name](x).dtype == input_dtype


@pytest.mark.case38
@devices
@low
@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_dtypes_of_blocks(sample, dtype, device):
    """The product with a float32 input is float32 by type promotion; an output transform ends with a convolution."""
    output_dtype = dtype if sample.config.get("output_transform") else torch.float32
    block = sample.create("torch").eval()
    with autocast(device, dtype):
        to_fake_device(block, device)
        for input_dtype, expected in ((dtype, dtype), (torch.float32, output_dtype)):
            xs = [torch.empty(shape, dtype=input_dtype, device=device) for shape in sample.shapes]
            assert block(*xs).dtype == expected
            assert {a.dtype for a in by_name(block.attention(*xs)).values()} <= {dtype, input_dtype}


@pytest.mark.case38
@devices
@pytest.mark.parametrize("name", NETS)
@pytest.mark.one_of_each(share=3)
def test_all_modules_of_a_network_have_the_autocast_dtype(name, device):
    dtypes_of, dtype = {}, torch.bfloat16

    def record(path):
        return lambda module, inputs, output: dtypes_of.update({path: {tensor.dtype for tensor in (*inputs, output)}})

    net = create(name, "torch").eval()
    with autocast(device, dtype):
        to_fake_device(net, device)
        assert net(torch.empty(NETS[name][1], device=device)).dtype == dtype
        for path, module in net.named_modules():
            module.register_forward_hook(record(path))
        net(torch.empty(NETS[name][1], dtype=dtype, device=device))
    assert {path: dtypes for path, dtypes in dtypes_of.items() if dtypes != {dtype}} == {}
    assert len(dtypes_of) > 10
