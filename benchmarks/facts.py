"""Describe the machine, its load, the versions and the commit of a run, without host names or paths."""

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
LARGE: Final = 256 << 20   # bytes of the copy that measures memory bandwidth
SMALL: Final = 256 << 10   # bytes of the copy that fits in a core's cache


def configure(device: str) -> dict[str, Any]:
    """Set this process up for timing and return the flags that affect speed.

    Raises ValueError if the device is not "cpu" or "cuda", or CUDA is not available.
    """
    functorch.donated_buffer = False   # a donated buffer would forbid repeating a compiled backward pass
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("expected a CUDA device, got none that torch can use; pass --device cpu")
        return {
            "convolutions in TF32": torch.backends.cudnn.allow_tf32,
            "matrix products in TF32": torch.backends.cuda.matmul.allow_tf32,
        }
    if device != "cpu":
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    torch.set_num_threads(1)
    return {"threads": 1, "freed pages are kept": keep_pages()}


def machine(device: str) -> dict[str, Any]:
    """Return the processor, core count and system, and on CUDA the GPU's properties."""
    machine_facts = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return machine_facts | (cuda.facts() if device == "cuda" else {})


def load() -> list[float]:
    """Return the load averages over 1, 5 and 15 minutes."""
    return [round(average, 2) for average in os.getloadavg()]


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package in PACKAGES; None if not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def ceilings(device: str) -> dict[str, float]:
    """Measure the machine's limits: copy rates in GB/s and the time of the smallest call in microseconds."""
    if device == "cuda":
        return cuda.ceilings()
    cpu, element = Cpu(), torch.zeros(1)
    large, small = (torch.randn(size // 4) for size in (LARGE, SMALL))
    targets = torch.empty_like(large), torch.empty_like(small)

    def least(call: Call, repeats: int) -> float:
        """Return the least seconds per call of five turns."""
        return min(cpu.turn(call)(repeats) for _ in range(5))

    return {
        "copy GB/s": 2 * LARGE / 1e9 / least(lambda: targets[0].copy_(large), 1),
        "copy in cache GB/s": 2 * SMALL / 1e9 / least(lambda: targets[1].copy_(small), 100),
        "smallest call us": 1e6 * least(lambda: element.add_(1), 1000),
    }


def commit() -> str | None:
    """Return the measured commit, with "+changes" if the working tree differs; None without git."""
    command = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
