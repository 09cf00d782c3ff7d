"""Compile every kernel that the blocks launch, without a GPU: python tests/aot.py [--every | --half N] [--all].

The blocks run forward and backward on CPU tensors. Their kernel launches are recorded instead of run, and compiled with
the same specialization as on a GPU. Prints a line for each kernel that exceeds a limit, and a summary. Exits with 1 if
a kernel exceeds a limit.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import attzoo
from attzoo.blocks.attention_gate.kernels import forward as gate
from attzoo.fast import choice
from attzoo.fast.cases import KernelCase

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Compute capability -> bytes of shared memory per program, from the CUDA programming guide, table 27. 8.0 has more than
# stated here, but its code also runs on 8.6 and 8.9.
SHARED = {80: 101376, 90: 232448, 100: 232448, 120: 101376}
STACK = 64   # bytes of stack; Triton 3.6 uses up to 40 even if registers are free
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
CASES: list[tuple[str, KernelCase]] = [
    (name, case)
    for name in attzoo.names()
    if attzoo.info(name).fused
    for case in attzoo.get(name, backend="torch").triton_form().CASES
]


@dataclass(frozen=True)
class Launch:
    """A kernel launch, specialized as by Triton.

    Attributes:
        module: module of the kernel.
        name: name of the kernel.
        signature: parameters and their Triton types.
        constants: positions of the constant parameters and their values.
        divisible: positions of the parameters that are multiples of 16.
        options: launch options, such as num_warps.

    """

    module: str
    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def wide(self) -> bool:
        """Whether all addresses and sizes are multiples of 16, so that a thread can read 16 bytes at once."""
        positions = [i for i, (_, kind) in enumerate(self.signature) if kind.startswith("*") or kind == "i32"]
        return set(positions) <= set(self.divisible)

    def __str__(self) -> str:
        kinds = " ".join(dict.fromkeys(kind for _, kind in self.signature if kind.startswith("*")))
        values = " ".join(f"{self.signature[i][0]}={value}" for (i,), value in self.constants if value is not None)
        return f"{self.name} {kinds} {values} {'aligned' if self.wide else 'unaligned'}"


def launches(
    capability: int, block: str, case: KernelCase, shape: tuple[int, ...], dtype: torch.dtype, last: bool
) -> Iterator[Launch]:
    """Record the kernel launches of a training step and a call without gradients.

    Args:
        capability: compute capability of the GPU, times 10.
        block: name of the block.
        case: arguments and options of the block.
        shape: shape of x, (N, C, H, W); changed to the rank of the case.
        dtype: dtype of the inputs and weights.
        last: whether x is channels last in memory.

    """
    recorded: list[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorded.append(launch(self, args, kwargs))

    sizes = {1: (prod(shape[2:]),), 2: shape[2:], 3: (4, *shape[2:])}[case.arguments.get("spatial_dims", 2)]
    shape = (*shape[:2], *sizes)
    module: Any = attzoo.info(block).create(shape[1], backend="torch", **case.arguments).to(dtype)
    coarse = (*shape[:2], *(max(1, size // case.coarse) for size in sizes))
    xs = [torch.ones(shape if i == 0 else coarse, dtype=dtype) for i in range(len(module.spec.inputs))]
    xs = [x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x for x in xs]
    residual_arguments = {"shortcut": torch.ones_like(xs[0]), "act": case.act} if case.act else {}
    without_gpu = mock.patch.object(choice, "kernels_refusal", return_value=None)
    limit = 128 if capability // 10 in gate.SHARED_MEMORY_OPERANDS else 64
    tile_limit = mock.patch.object(gate, "max_channels", return_value=limit)
    tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=not case.exact)
    with mock.patch.object(JITFunction, "run", record), without_gpu, tile_limit, tf32, attzoo.kernels("triton"):
        module(*(x.requires_grad_() for x in xs), **residual_arguments).backward(torch.ones_like(xs[0]))
        with torch.no_grad():
            module(*xs, **residual_arguments)
    yield from recorded


def launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """Specialize a launch as Triton does: None and 1 are constants; multiples of 16 are marked."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, divisible = [], [], []
    for i, param in enumerate(kernel.params):
        value = values.pop(param.name)
        if param.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            kind = "constexpr"
            constants.append(((i,), value))
        elif isinstance(value, torch.Tensor):
            kind = f"*{NAMES[value.dtype]}"
            divisible += [i] if value.data_ptr() % 16 == 0 else []
        elif isinstance(value, int):
            kind = "i32" if value < 1 << 31 else "i64"
            divisible += [i] if value % 16 == 0 else []
        else:
            kind = "fp32"
        signature.append((param.name, kind))
    parts = tuple(signature), tuple(constants), tuple(divisible), tuple(sorted(values.items()))
    return Launch(kernel.fn.__module__, kernel.fn.__name__, *parts)


def compiled(capability: int, recorded: Launch) -> tuple[str, bool]:
    """Compile a kernel; return a text on its resources or the compiler's error, and whether it exceeds a limit."""
    kernel = getattr(
        sys.modules.get(recorded.module) or __import__(recorded.module, fromlist=[""]), recorded.name
    )   # fmt: skip
    attributes = {(i,): [["tt.divisibility", 16]] for i in recorded.divisible}
    constants, signature = dict(recorded.constants), dict(recorded.signature)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    try:
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(recorded.options))
    except Exception as err:   # compilers raise exceptions of many types
        return f"{type(err).__name__}: {' '.join(str(err).split())[-200:]}", True
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([BINARIES / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
        code = subprocess.run([BINARIES / "nvdisasm", file.name], capture_output=True, text=True).stdout
    stack, registers = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("STACK", "REG"))   # type: ignore[index]
    widest = max(map(int, re.findall(r"LDG(?:STS)?\.E\S*?\.(64|128)\b", code)), default=32)
    memory = f"{stack} bytes of stack, {binary.metadata.shared} of shared memory"
    resources_text = f"{registers} registers, {memory}, loads of {widest} bits"
    has_narrow_loads = recorded.wide and "x" in signature and widest < 128
    return resources_text, stack > STACK or binary.metadata.shared > SHARED[capability] or has_narrow_loads


def main() -> int:
    """Compile all kernels and print those that exceed a limit. Return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", action="store_true", help="compile for all GPUs, with float16 too, and rare cases")
    parser.add_argument("--half", type=int, choices=(1, 2), help="each dtype in one memory format; 2: in the other")
    parser.add_argument("--all", action="store_true", help="print the resources of all kernels")
    options = parser.parse_args()
    shapes = [(32, 128, 32, 32), (3, 19, 7, 7)]
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if options.every else [])]
    cases = [
        (block, case, shape, dtype, last)
        for (block, case), dtype, last, shape in product(CASES, dtypes, (False, True), shapes)
        if (options.every or not case.rare) and options.half != 1 + (last == (dtype == torch.float32))
    ]
    count = wrong = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for capability in SHARED if options.every else [90]:
            recorded = list(dict.fromkeys(chain.from_iterable(launches(capability, *case) for case in cases)))
            count += len(recorded)
            results = pool.map(partial(compiled, capability), recorded, chunksize=4)
            for kernel_launch, (text, exceeds_limit) in zip(recorded, results, strict=True):
                wrong += exceeds_limit
                if exceeds_limit or options.all:
                    print(f"{'WRONG ' * exceeds_limit}sm_{capability} {kernel_launch}: {text}", flush=True)
    print(f"triton {triton.__version__}: {count} kernels, {wrong} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
