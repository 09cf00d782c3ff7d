"""Launch kernels for a GPU that is not present, and check that `common.launch` runs what Triton itself would run.

Triton compiles the kernels; a replacement of its driver records the launches. This is a program of its own, because
Triton's interpreter, which the tests use, can only be selected for a whole process.
"""

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from attzoo.fast.triton import common


class Utils:
    """Properties of the device, and a loader that loads nothing."""

    def get_device_properties(self, device):
        return {"max_shared_mem": 1 << 17}

    def load_binary(self, *args):
        return 1, 1, 32, 0, 1024


class Launcher:
    """Records launches in `launches` as grid, source and arguments."""

    def __init__(self, source, metadata):
        self.source = source

    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter_hook, exit_hook, *args):
        launches.append((x, y, z, self.source, args))


class Driver:
    """A driver for one GPU of compute capability 9.0."""

    utils, launcher_cls = Utils(), Launcher

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@triton.jit
def kernel(x, y, shortcut, n, scale, TWICE: tl.constexpr, BS: tl.constexpr):
    s = tl.program_id(0) * BS + tl.arange(0, BS)
    v = tl.load(x + s, s < n).to(tl.float32) * scale
    if TWICE:
        v = v * 2
    if shortcut is not None:
        v += tl.load(shortcut + s, s < n)
    tl.store(y + s, v.to(y.dtype.element_ty), s < n)


tensor = torch.zeros(1 << 12)
defaults = {"TWICE": True, "BS": 64}
CALLS = [   # Triton compiles different code for each of these
    ((tensor, tensor, None, 64, 0.5), defaults),
    ((tensor, tensor, None, 64, 0.5), defaults | {"TWICE": False}),
    ((tensor, tensor, None, 64, 0.5), defaults | {"BS": 32}),
    ((tensor, tensor, None, 64, 0.5), defaults | {"num_warps": 8}),
    ((tensor, tensor, tensor, 64, 0.5), defaults),
    ((tensor, tensor.half(), None, 64, 0.5), defaults),
    ((tensor[1:], tensor, None, 64, 0.5), defaults),
    ((tensor, tensor[1:], None, 64, 0.5), defaults),
    ((tensor, tensor, None, 63, 0.5), defaults),
    ((tensor, tensor, None, 1, 0.5), defaults),
    ((tensor, tensor, None, 1 << 40, 0.5), defaults),
]
compiled, launches, triton_run = [], [], JITFunction.run


def run(self, *args, **kwargs):
    """Call Triton's own `run`, and record the compiled kernel."""
    compiled.append(triton_run(self, *args, **kwargs))
    return compiled[-1]


def launch_all(calls):
    """Launch the calls; return the recorded launches, and the kernels that Triton was asked to compile."""
    compiled.clear(), launches.clear()
    for args, options in calls:
        common.launch(kernel, 3, *args, **options)
    return list(launches), list(compiled)


if __name__ == "__main__":
    driver.set_active(Driver())
    JITFunction.run = run
    first_launches, kernels = launch_all(CALLS)
    assert len({kernel.hash for kernel in kernels}) == len(CALLS)

    copy = tensor.clone()   # same density and alignment
    repeated = [([copy if arg is tensor else arg for arg in args], options) for args, options in reversed(CALLS)]
    second_launches, kernels = launch_all(repeated)
    assert not kernels, "Triton was asked again for a kernel that is cached"
    assert len(second_launches) == len(CALLS)
    for (args, _), second, first in zip(repeated, second_launches, reversed(first_launches), strict=True):
        *grid, source, launch_args = second
        *expected_grid, expected_source, expected_args = first
        assert (grid, source) == (expected_grid, expected_source), "another kernel was launched"
        assert all(actual is arg or actual == arg for actual, arg in zip(launch_args, args, strict=False))
        assert launch_args[len(args):] == expected_args[len(args):], "the constants differ from those of Triton"

    common.COMPILED.clear()
    common.MAX_COMPILED = 2
    launch_all(CALLS[:3])
    assert len(common.COMPILED) == 1, "the cache is not cleared when it is full"
    common.launch(kernel, 0, *CALLS[0][0], **defaults)
    assert len(launches) == 3, "0 programs were launched"
    print("as Triton does")
