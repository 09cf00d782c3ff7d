"""Compile every kernel that the blocks launch for GPUs that are not here: python tests/aot.py [--every] [--all].

What is launched is recorded, not run, while blocks go forward and back over tensors on the CPU; so what is compiled is
what a GPU would get. Prints a line for each kernel that breaks a limit and a summary; exits with 1 if there is one.
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
from itertools import product
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
# Bytes that a program may have, by the CUDA programming guide, table 27; 8.0 has more, but its code is 8.6's and 8.9's
SHARED = {80: 101376, 90: 232448, 100: 232448, 120: 101376}
STACK = 64                                       # bytes: Triton 3.6 keeps up to 40 where registers are left
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
CASES: list[tuple[str, KernelCase]] = [
    (name, case)
    for name in attzoo.names()
    if attzoo.info(name).fused
    for case in attzoo.get(name, backend="torch").triton_form().CASES
]


@dataclass(frozen=True)
class Launch:
    """One kernel as it is launched: signature and attributes as Triton's own specialisation would have them."""

    module: str
    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def wide(self) -> bool:
        """Whether everything is aligned, so that a thread can read 16 bytes at once."""
        tensors = [i for i, (_, kind) in enumerate(self.signature) if kind.startswith("*") or kind == "i32"]
        return set(tensors) <= set(self.divisible)

    def __str__(self) -> str:
        kinds = " ".join(dict.fromkeys(kind for _, kind in self.signature if kind.startswith("*")))
        values = " ".join(f"{self.signature[i][0]}={value}" for (i,), value in self.constants if value is not None)
        return f"{self.name} {kinds} {values} {'aligned' if self.wide else 'unaligned'}"


def launches(
    capability: int, block: str, case: KernelCase, shape: tuple[int, ...], dtype: torch.dtype, last: bool
) -> Iterator[Launch]:
    """What a training step of a block and a call without gradients launch."""
    found: list[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.append(launch(self, args, kwargs))

    space = {1: (prod(shape[2:]),), 2: shape[2:], 3: (4, *shape[2:])}[case.arguments.get("spatial_dims", 2)]
    shape = (*shape[:2], *space)
    made: Any = attzoo.info(block).create(shape[1], backend="torch", **case.arguments).to(dtype)
    coarse = (*shape[:2], *(max(1, size // case.coarse) for size in space))
    xs = [torch.ones(shape if i == 0 else coarse, dtype=dtype) for i in range(len(made.spec.inputs))]
    xs = [x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x for x in xs]
    ending = {"shortcut": torch.ones_like(xs[0]), "act": case.act} if case.act else {}
    there = mock.patch.object(choice, "kernels_refusal", return_value=None)
    then = mock.patch.object(gate, "most", return_value=128 if capability // 10 in gate.ROOMY else 64)
    as_convolutions = torch.backends.cudnn.flags(enabled=True, allow_tf32=not case.exact)
    with mock.patch.object(JITFunction, "run", record), there, then, as_convolutions, attzoo.kernels("triton"):
        made(*(x.requires_grad_() for x in xs), **ending).backward(torch.ones_like(xs[0]))
        with torch.no_grad():
            made(*xs, **ending)
    yield from found


def launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """As Triton would specialise it: None and 1 are constants; addresses and sizes may be multiples of 16."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, divisible = [], [], []
    for i, param in enumerate(kernel.params):
        value = given.pop(param.name)
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
    parts = tuple(signature), tuple(constants), tuple(divisible), tuple(sorted(given.items()))
    return Launch(kernel.fn.__module__, kernel.fn.__name__, *parts)


def compiled(capability: int, it: Launch) -> tuple[str, bool]:
    """What a kernel compiled for this capability takes or, and True, what is wrong with it."""
    kernel = getattr(sys.modules.get(it.module) or __import__(it.module, fromlist=[""]), it.name)
    attributes = {(i,): [["tt.divisibility", 16]] for i in it.divisible}
    source = ASTSource(fn=kernel, signature=dict(it.signature), constexprs=dict(it.constants), attrs=attributes)
    try:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(it.options))
    except Exception as err:   # whatever a compiler raises is what is wrong
        return f"{type(err).__name__}: {' '.join(str(err).split())[-200:]}", True
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used = subprocess.run([BINARIES / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
        code = subprocess.run([BINARIES / "nvdisasm", file.name], capture_output=True, text=True).stdout
    stack, registers = (int(re.search(rf"{word}:(\d+)", used)[1]) for word in ("STACK", "REG"))   # type: ignore[index]
    widest = max(map(int, re.findall(r"LDG(?:STS)?\.E\S*?\.(64|128)\b", code)), default=32)
    memory = f"{stack} bytes of stack, {made.metadata.shared} of shared memory"
    takes = f"{registers} registers, {memory}, loads of {widest} bits"
    narrow = it.wide and "x" in dict(it.signature) and widest < 128
    return takes, stack > STACK or made.metadata.shared > SHARED[capability] or narrow


def main() -> int:
    """Print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", action="store_true", help="for every GPU, float16 besides bfloat16, and all options")
    parser.add_argument("--all", action="store_true", help="print what every kernel takes, not only what is wrong")
    options = parser.parse_args()
    shapes = [(32, 128, 32, 32), (3, 19, 7, 7)]
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if options.every else [])]
    cases = [
        (block, case, shape, dtype, last)
        for (block, case), dtype, last, shape in product(CASES, dtypes, (False, True), shapes)
        if options.every or not case.rare
    ]
    many = wrong = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for capability in SHARED if options.every else [90]:
            found = list(dict.fromkeys(it for case in cases for it in launches(capability, *case)))
            many += len(found)
            results = pool.map(partial(compiled, capability), found, chunksize=4)
            for it, (takes, bad) in zip(found, results, strict=True):
                wrong += bad
                if bad or options.all:
                    print(f"{'WRONG ' * bad}sm_{capability} {it}: {takes}", flush=True)
    print(f"triton {triton.__version__}: {many} kernels, {wrong} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
