"""Launching a kernel: what Triton compiled is found again by what it is called with, and never another."""

from pathlib import Path

import kernels  # noqa: F401  (which skips this module where they cannot run)
from test_imports import python


def test_what_was_compiled_is_found_again():
    path = str(Path(__file__).with_name("launching.py"))
    done = python(f"import runpy; runpy.run_path({path!r}, run_name='__main__')", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "as Triton does\n"
