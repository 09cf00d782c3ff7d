"""Launch a kernel for a GPU that is not here, and see that what runs is what Triton itself would run.

Triton compiles for real; what it would hand to the driver is noted. A program of its own, for Triton is either its
interpreter, as in the tests, or not.
"""

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from attzoo.fast.triton import common


class Utils:
    def get_device_properties(self, device):
        return {"max_shared_mem": 1 << 17}

    def load_binary(self, *args):
        return 1, 1, 32, 0, 1024


class Launcher:
    def __init__(self, source, metadata):
        self.source = source

    def __call__(self, x, y, z, stream, function, metadata, about, enter, leave, *args):
        ran.append((x, y, z, self.source, args))


class Driver:
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


room = torch.zeros(1 << 12)
usual = {"TWICE": True, "BS": 64}
CALLS = [   # no two of which Triton compiles alike
    ((room, room, None, 64, 0.5), usual),
    ((room, room, None, 64, 0.5), usual | {"TWICE": False}),
    ((room, room, None, 64, 0.5), usual | {"BS": 32}),
    ((room, room, None, 64, 0.5), usual | {"num_warps": 8}),
    ((room, room, room, 64, 0.5), usual),
    ((room, room.half(), None, 64, 0.5), usual),
    ((room[1:], room, None, 64, 0.5), usual),
    ((room, room[1:], None, 64, 0.5), usual),
    ((room, room, None, 63, 0.5), usual),
    ((room, room, None, 1, 0.5), usual),
    ((room, room, None, 1 << 40, 0.5), usual),
]
asked, ran, real = [], [], JITFunction.run


def run(self, *args, **kwargs):
    asked.append(real(self, *args, **kwargs))
    return asked[-1]


def launched(calls):
    """What runs, and what Triton was asked for."""
    asked.clear(), ran.clear()
    for args, options in calls:
        common.launch(kernel, 3, *args, **options)
    return list(ran), list(asked)


if __name__ == "__main__":
    driver.set_active(Driver())
    JITFunction.run = run
    first, kernels = launched(CALLS)
    assert len({it.hash for it in kernels}) == len(CALLS)

    other = room.clone()   # as dense and as aligned
    turned = [([other if arg is room else arg for arg in args], options) for args, options in reversed(CALLS)]
    again, kernels = launched(turned)
    assert not kernels, "what is known is asked for again"
    assert len(again) == len(CALLS)
    for (args, _), (*grid, source, given), (*wanted, old, before) in zip(turned, again, reversed(first), strict=True):
        assert (grid, source) == (wanted, old), "another kernel is run"
        assert all(new is arg or new == arg for new, arg in zip(given, args, strict=False))
        assert given[len(args):] == before[len(args):], "it has other constants than Triton gives it"

    common.COMPILED.clear()
    common.MOST = 2
    launched(CALLS[:3])
    assert len(common.COMPILED) == 1, "what is kept grows without an end"
    common.launch(kernel, 0, *CALLS[0][0], **usual)
    assert len(ran) == 3, "no programs, and yet a launch"
    print("as Triton does")
