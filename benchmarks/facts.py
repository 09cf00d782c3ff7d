"""Where and under which conditions a run was made, without names or paths of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from torch._functorch import config as functorch

from . import cuda
from .pages import keep_pages
from .timer import Call, Cpu

PACKAGES: Final = ("attzoo", "torch", "triton", "numpy", "timm", "monai", "torchvision", "keras", "tensorflow", "jax")
LARGE: Final = 256 << 20   # bytes, of the copy that shows the memory's bandwidth
SMALL: Final = 256 << 10   # bytes, of the copy that stays in a core's cache


def settle(device: str) -> dict[str, Any]:
    """Make this process fit to be timed; the flags that say how. Raises ValueError for a device that is not there."""
    functorch.donated_buffer = False   # or a compiled backward pass could not be repeated alone
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("expected a CUDA device, got a torch that sees none; --device cpu needs none")
        return {
            "convolutions in TF32": torch.backends.cudnn.allow_tf32,
            "matrix products in TF32": torch.backends.cuda.matmul.allow_tf32,
        }
    if device != "cpu":
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    torch.set_num_threads(1)
    return {"threads": 1, "freed pages are kept": keep_pages()}


def machine(device: str) -> dict[str, Any]:
    """What it is."""
    told = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return told | (cuda.facts() if device == "cuda" else {})


def load() -> list[float]:
    """Programs that wanted a core in the last 1, 5 and 15 minutes."""
    return [round(each, 2) for each in os.getloadavg()]


def versions() -> dict[str, str | None]:
    """Package -> version, None where it is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def ceilings(device: str) -> dict[str, float]:
    """What the machine can do at most."""
    if device == "cuda":
        return cuda.ceilings()
    cpu, one = Cpu(), torch.zeros(1)
    large, small = (torch.randn(size // 4) for size in (LARGE, SMALL))
    targets = torch.empty_like(large), torch.empty_like(small)

    def least(call: Call, repeats: int) -> float:
        return min(cpu.turn(call)(repeats) for _ in range(5))

    return {
        "copy GB/s": 2 * LARGE / 1e9 / least(lambda: targets[0].copy_(large), 1),
        "copy in cache GB/s": 2 * SMALL / 1e9 / least(lambda: targets[1].copy_(small), 100),
        "smallest call us": 1e6 * least(lambda: one.add_(1), 1000),
    }


def commit() -> str | None:
    """The commit that is measured, marked where the working tree differs from it."""
    ask = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try:
        told = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
