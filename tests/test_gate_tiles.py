"""Exact float32 products are launched only in tiles that have given correct results on a GPU."""

import sys
from itertools import product

import kernels  # noqa: F401
import pytest
import torch

import attzoo

# isort: split
# below, because `kernels` skips this module if Triton is not available
from attzoo.blocks.attention_gate.kernels import forward as gate

# (BF, BC, BS, warps) that ran on an H200 with Triton 3.6, in the tests of real sizes and in a sweep with 64 inner
# channels. In the sweep, (64, 64, 16, 8) of input_kernel caused an illegal memory access; 128 inner channels were not
# tried.
FORWARD = {
    (16, 16, 32, 4), (16, 32, 32, 4), (16, 64, 32, 4), (32, 64, 32, 4), (64, 32, 32, 8), (64, 64, 32, 8),
    (128, 16, 32, 8), (128, 32, 32, 8), (128, 64, 32, 8),
}   # fmt: skip
STATISTICS = {
    (16, 16, 32, 4), (16, 32, 32, 4), (32, 64, 32, 4), (64, 32, 32, 8), (128, 16, 32, 8), (128, 32, 32, 8),
}   # fmt: skip
SWEEP = {
    (64, 16, 16, 8), (64, 32, 16, 8), (64, 32, 32, 8), (64, 16, 16, 4), (64, 64, 16, 4), (64, 64, 32, 8),
    (64, 32, 32, 4), (64, 64, 64, 8),
}   # fmt: skip
RAN = {
    ("project_kernel", False): FORWARD,
    ("gate_kernel", False): FORWARD,
    ("moments_kernel", False): STATISTICS,
    ("sums_kernel", False): STATISTICS,
    ("input_kernel", False): SWEEP | {(16, 16, 16, 4), (16, 32, 16, 4), (16, 64, 16, 4), (32, 64, 16, 4)},
    ("input_kernel", True): {(16, 16, 16, 4), (16, 32, 16, 4), (32, 32, 16, 4), (64, 16, 16, 8)},
}
MOST = {80: 64, 86: 64, 90: 128, 100: 128, 103: 128, 120: 64}   # compute capability -> channels per program


@pytest.fixture
def launched(monkeypatch):
    """Record launches as kernel name, whether it centres e for batch norm, and options; no kernel runs."""
    launches = []

    def record(kernel, programs, *args, **options):
        name = kernel.fn.__name__
        centred = name == "input_kernel" and args[kernel.arg_names.index("batch")] is not None
        launches.append((name, centred, options))

    # In every module, because a kernel that ran would read memory that was never written.
    for name, module in list(sys.modules.items()):
        if name.startswith("attzoo.") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", record)
    return launches


def train(inner, channels, gating, dtype=torch.float32, norm=False, coarse=False, last=False, shift=0):
    """Run a forward and a backward pass, with inputs that start `shift` elements after an aligned address."""
    block = attzoo.create(
        "attention_gate", channels, gating_channels=gating, inter_channels=inner, norm=norm, backend="torch"
    )
    sizes = (1, channels, 2, 4), (1, gating, 1 if coarse else 2, 2 if coarse else 4)

    def zeros(size):
        x = torch.zeros(torch.Size(size).numel() + shift, dtype=dtype)[shift:].view(size)
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x

    xs = [zeros(size).requires_grad_() for size in sizes]
    with attzoo.kernels("triton"):
        y = block.to(dtype)(*xs)
        torch.autograd.grad(y, [*xs, *block.parameters()], torch.zeros_like(y))


WIDTHS = (1, 16, 17, 32, 33, 64, 65, 128, 129)


@pytest.mark.parametrize("max_channels", sorted(set(MOST.values())))
@pytest.mark.parametrize("norm", [False, True])
def test_exact_products_use_tested_tiles(max_channels, norm, launched, exact_products, monkeypatch):
    monkeypatch.setattr(gate, "max_channels", lambda x: max_channels)
    for i, (inner, channels) in enumerate(product(WIDTHS, WIDTHS)):
        train(inner, channels, WIDTHS[i % 7], norm=norm, coarse=i % 2 > 0, last=i % 3 > 0, shift=i % 5 % 2)
    tiles_by_kernel = {}
    for name, centred, options in launched:
        if "PRECISION" in options:
            assert options["PRECISION"] == "tf32x3"
            tile = tuple(options[key] for key in ("BF", "BC", "BS", "num_warps"))
            tiles_by_kernel.setdefault((name, centred), set()).add(tile)
    without_norm, only_with_norm = {"project_kernel", "gate_kernel", "input_kernel"}, {"moments_kernel", "sums_kernel"}
    assert {name for name, _ in tiles_by_kernel} == without_norm | (only_with_norm if norm else set())
    assert {centred for name, centred in tiles_by_kernel if name == "input_kernel"} == {norm}
    for key, tiles in tiles_by_kernel.items():
        assert tiles <= RAN[key], key
        assert len(tiles) > 2


@pytest.mark.parametrize("capability", MOST)
def test_channels_per_program_depend_on_compute_capability(capability, monkeypatch):
    monkeypatch.setattr(gate, "capability", lambda device: divmod(capability, 10))

    class OnGPU:
        is_cuda, device = True, None

    assert gate.max_channels(OnGPU()) == MOST[capability]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_products_use_tensor_cores(dtype, launched, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", dtype == torch.float32)
    for inner, channels in product((16, 64, 200), (16, 64, 200)):
        train(inner, channels, 16, dtype, norm=True)
    assert {options["PRECISION"] for *_, options in launched if "PRECISION" in options} == {"tf32"}
