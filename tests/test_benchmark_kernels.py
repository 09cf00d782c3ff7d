"""Fused kernels in the timing suite: who runs them and who never does, and what is said of them. No GPU is needed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import attzoo
from attzoo import settings
from attzoo.ops import fused
from benchmarks import measure, providers, subjects
from benchmarks.cases import Case
from benchmarks.measure import Bench
from benchmarks.run import install
from benchmarks.runs import FUSED
from benchmarks.timer import Pace

ROOT = Path(__file__).parents[1]
CASE = Case("se", ((2, 8, 5, 4),), "training", variant="timm")
BENCH = Bench("cpu", {"cpu": Pace(3, 0.0)})


def by_name(rows):
    return {str(row.provider): row for row in rows}


# ---- who runs them ---------------------------------------------------------------------------------------------------

# In Triton's interpreter, in a process of its own: whether it is used is settled when triton is imported.
INTERPRETED = """
import json
from attzoo import settings
from attzoo.ops import fused
from benchmarks import measure, providers
from benchmarks.cases import Case
from benchmarks.timer import Pace

seen, serves = set(), fused.serves

def watched(block, *inputs, **others):
    seen.add((settings.chosen, str(inputs[1].dtype)))
    return serves(block, *inputs, **others)

fused.serves = watched
providers.has_kernels, providers.PEERS = lambda it: True, {}
bench, told = measure.Bench("cpu", {"cpu": Pace(3, 0.0)}), {}
for mode in ("inference", "forward", "backward", "training"):
    rows = measure.measure(Case("se", ((2, 8, 3, 2),), mode, variant="timm"), bench)
    told[mode] = {str(row.provider): [row.status, row.error, row.kept] for row in rows}
told["seen"] = sorted(seen)
told["after"] = settings.chosen
print(json.dumps(told))
"""


def test_kernels_are_verified_and_timed_in_every_mode_and_eager_rows_run_none():
    others = {"TRITON_INTERPRET": "1", "ATTZOO_KERNELS": "triton", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERPRETED]
    said = subprocess.run(command, env=os.environ | others, cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(said.stdout)
    for mode in ("inference", "forward", "backward", "training"):
        assert list(told[mode]) == ["attzoo", "attzoo (triton)", "copy"]
        for status, error, kept in (told[mode][name] for name in ("attzoo", "attzoo (triton)")):
            assert status in ("timed", "unsteady")
            assert error < 1e-6
            assert (kept is None) == (mode != "training")
    assert told["seen"] == [["eager", "torch.float32"], ["eager", "torch.float64"], ["triton", "torch.float32"]]
    assert told["after"] == "triton"   # as the environment has it


@pytest.fixture
def offered(monkeypatch):
    """As where there is a GPU, which here there is not."""
    monkeypatch.setattr(providers, "has_kernels", lambda it: it.case.block != "none")
    monkeypatch.setattr(providers, "PEERS", {})
    monkeypatch.setattr(fused, "interpreted", lambda: False)


def test_a_kernel_that_refuses_is_a_row_that_failed(offered):
    rows = by_name(measure.measure(CASE, BENCH))
    assert list(rows) == ["attzoo (triton)", "attzoo", "copy"]
    assert rows["attzoo (triton)"].status == "failed"
    assert rows["attzoo (triton)"].why == (
        'RuntimeError: kernels("triton") asks for a fused SE, but it runs on a CUDA device, and the input is on cpu'
    )
    assert rows["attzoo"].status in ("timed", "unsteady")


def test_without_triton_it_is_absent(offered, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'triton'", name=name)

    monkeypatch.setattr(providers, "import_module", absent)
    bench = replace(BENCH, absent=set())
    assert list(by_name(measure.measure(CASE, bench))) == ["attzoo", "copy"]
    assert bench.absent == {"triton"}
    assert install("triton") == 'pip install "attzoo[triton]"'


def test_on_a_cpu_nobody_runs_them():
    it = subjects.subject(CASE, "cpu")
    assert FUSED not in [racer.provider for racer in providers.contenders(it)]


@pytest.mark.parametrize(("block", "offered"), [("se", True), ("cbam", True), ("none", False)])
def test_a_block_with_kernels_is_asked_for_them_where_there_is_a_gpu(monkeypatch, block, offered):
    it = subjects.subject(Case(block, ((1, 3, 32, 32),), network="resnet50"), "cpu")
    monkeypatch.setattr(subjects.Subject, "device", subjects.torch.device("cuda"))
    assert providers.has_kernels(it) is offered


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_in_a_network_its_blocks_run_them(offered, mode):
    it = subjects.subject(Case("eca", ((1, 3, 32, 32),), mode, network="resnet50", variant="timm"), "cpu")
    (racer,) = [racer for racer in providers.contenders(it) if racer.provider == FUSED]
    for calls in ([racer.outputs], racer.calls()):
        with attzoo.kernels("eager"), pytest.raises(RuntimeError, match="asks for a fused ECA"):
            calls[0]()
    assert settings.chosen != "triton"


def test_a_network_without_a_block_has_none(offered):
    it = subjects.subject(Case("none", ((1, 3, 32, 32),), network="resnet50"), "cpu")
    assert [str(racer.provider) for racer in providers.contenders(it)] == ["plain"]
