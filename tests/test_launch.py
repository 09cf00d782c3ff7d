"""Test of launching kernels: compiled kernels are reused for equal arguments only."""

from pathlib import Path

import kernels  # noqa: F401  (skips this module if the kernels cannot run)
from test_imports import python


def test_launching_reuses_compiled_kernels_as_triton_does():
    path = str(Path(__file__).with_name("launching.py"))
    process = python(f"import runpy; runpy.run_path({path!r}, run_name='__main__')", TRITON_INTERPRET="0")
    assert process.returncode == 0, process.stderr
    assert process.stdout == "as Triton does\n"
