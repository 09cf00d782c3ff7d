"""Launching a kernel: what Triton compiled is found again by what it is called with, and never another."""

from pathlib import Path

import pytest
from test_imports import python

pytest.importorskip("triton")


def test_what_was_compiled_is_found_again():
    path = str(Path(__file__).with_name("launching.py"))
    done = python(f"import runpy; runpy.run_path({path!r}, run_name='__main__')", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "as Triton does\n"
