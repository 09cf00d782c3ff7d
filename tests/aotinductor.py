"""Compile exported programs with AOTInductor on the CPU, without optimization by the C++ compiler."""

import shutil

import pytest
import torch

from attzoo.contract import is_older

NEEDED = [   # marks of tests that compile
    pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++ on a CPU"),
    pytest.mark.skipif(is_older(torch.__version__, "2.11"), reason="needs the AOTInductor API of torch 2.11"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),   # inside torch
]


def needs_aotinductor(test):
    """Add the marks of tests that compile."""
    for mark in NEEDED:
        test = mark(test)
    return test


def compiled_package(program, folder):
    """Return the compiled program, a function of tensors, after writing it to a file and loading it."""
    fast_build = {"aot_inductor.debug_compile": True}   # the C++ compiler does not optimize
    file = str(folder / "program.pt2")
    path = torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=fast_build)
    return torch._inductor.aoti_load_package(path)
