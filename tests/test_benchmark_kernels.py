"""Fused kernels in the timing suite: who runs them and who never does, and what is said of them. No GPU is needed."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import attzoo
from attzoo import settings
from attzoo.blocks.sources import only_channels
from attzoo.contract import Source
from attzoo.fast import autograd, choice
from attzoo.fast.wins import WINS, Win, least
from benchmarks import measure, providers, report, subjects, suites, wins
from benchmarks.__main__ import app
from benchmarks.cases import Case
from benchmarks.goals import covers, goal, goals
from benchmarks.measure import Bench
from benchmarks.nets import Bottleneck
from benchmarks.run import install
from benchmarks.runs import COPY, FUSED, Provider, Row, Run, write
from benchmarks.selection import time_ratio
from benchmarks.timer import Pace, Spread

ROOT = Path(__file__).parents[1]
CASE = Case("se", ((2, 8, 5, 4),), "training", variant="timm")
BENCH = Bench("cpu", {"cpu": Pace(3, 0.0)})
GOALS = [each for name in attzoo.names() for each in goals(name).calls]


def by_name(rows):
    return {str(row.provider): row for row in rows}


# ---- who runs them ---------------------------------------------------------------------------------------------------

# In Triton's interpreter, in a process of its own: whether it is used is settled when triton is imported.
INTERPRETED = """
import json
from attzoo import settings
from attzoo.fast import autograd, choice
from benchmarks import measure, providers
from benchmarks.cases import Case
from benchmarks.timer import Pace

seen, should_use_kernels = set(), choice.should_use_kernels

def watched(block, *inputs, **others):
    seen.add((settings.chosen, str(inputs[0].dtype)))
    return should_use_kernels(block, *inputs, **others)

choice.should_use_kernels = watched
providers.has_kernels, providers.sources = lambda it: True, lambda name: {}
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
    """As where there is a GPU, but the kernels refuse."""
    monkeypatch.setattr(providers, "has_kernels", lambda it: it.case.block != "none")
    monkeypatch.setattr(providers, "sources", lambda name: {})
    monkeypatch.setattr(choice, "kernels_refusal", lambda *asked: "it does not like it")


def test_a_kernel_that_refuses_is_a_row_that_failed(offered):
    rows = by_name(measure.measure(CASE, BENCH))
    assert list(rows) == ["attzoo (triton)", "attzoo", "copy"]
    assert rows["attzoo (triton)"].status == "failed"
    asked = 'RuntimeError: kernels("triton") asks for a fused SE'
    assert rows["attzoo (triton)"].why == f'{asked}, but it does not like it; kernels("auto") has the plain form'
    assert rows["attzoo"].status in ("timed", "unsteady")


def test_without_triton_it_is_absent(offered, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'triton'", name=name)

    monkeypatch.setattr(providers, "import_module", absent)
    bench = replace(BENCH, absent=set())
    assert list(by_name(measure.measure(CASE, bench))) == ["attzoo", "copy"]
    assert bench.absent == {"triton"}
    assert install("triton") == 'pip install -e ".[triton]" in a clone of attzoo'


def test_on_a_cpu_nobody_runs_them():
    it = subjects.subject(CASE, "cpu")
    assert FUSED not in [racer.provider for racer in providers.contenders(it)]


@pytest.mark.parametrize(("block", "offered"), [("se", True), ("cbam", True), ("none", False)])
def test_a_block_with_kernels_is_asked_for_them_where_there_is_a_gpu(monkeypatch, block, offered):
    it = subjects.subject(Case(block, ((1, 3, 32, 32),), network="resnet50"), "cpu")
    monkeypatch.setattr(subjects.Subject, "device", torch.device("cuda"))
    assert providers.has_kernels(it) is offered


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_in_a_network_its_blocks_run_them(offered, mode):
    it = subjects.subject(Case("eca", ((1, 3, 32, 32),), mode, network="resnet50", variant="timm"), "cpu")
    (racer,) = [racer for racer in providers.contenders(it) if racer.provider == FUSED]
    for calls in ([racer.outputs], racer.calls()):
        with attzoo.kernels("eager"), pytest.raises(RuntimeError, match="asks for a fused ECA"):
            calls[0]()
    assert settings.chosen != "triton"


@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_in_a_residual_branch_the_kernels_add_the_shortcut(monkeypatch, name):
    pytest.importorskip("triton")
    shortcuts, real = [], autograd.Fused.__call__

    def watched(self, block, x, shortcut, *others, **options):
        shortcuts.append(shortcut is not None)
        return real(self, block, x, shortcut, *others, **options)

    monkeypatch.setattr(autograd.Fused, "__call__", watched)
    device = "cuda" if torch.cuda.is_available() else "cpu"   # there in Triton's interpreter
    net = Bottleneck(8, 16, 2, lambda channels: attzoo.create(name, channels, backend="torch")).to(device)
    x, cotangent = torch.randn(2, 8, 6, 5, device=device), torch.randn(2, 16, 3, 3, device=device)
    for mode in ("inference", "training"):
        found = [
            subjects.run(it, mode, [x], cotangent)
            for it in (providers.WithKernels(deepcopy(net)), deepcopy(net))
        ]   # fmt: skip
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert shortcuts == [True, True]


def test_a_network_without_a_block_has_none(offered):
    it = subjects.subject(Case("none", ((1, 3, 32, 32),), network="resnet50"), "cpu")
    assert [str(racer.provider) for racer in providers.contenders(it)] == ["plain"]


# ---- what is said of them: no number here was measured ---------------------------------------------------------------

MAP = (32, 256, 56, 56)
SE = Case("se", (MAP,), variant="timm")
OURS, TIMM = Provider("attzoo"), Provider("timm")
COMPILED = [Provider("timm", form=form) for form in providers.COMPILED]


def about(value):
    return Spread(0.99 * value, value, 1.01 * value)


def timed(case, provider, part, clock="graph", **others):
    """A row of a call that takes `part` of the time of timm's eager block, which takes two copies."""
    held = {"reference": "timm", "control": about(1.0), "ratio": None if provider == TIMM else about(part)}
    spreads = {"seconds": about(part * 1e-3), "copies": None if case.network else about(2 * part)}
    return replace(Row(case, provider, "timed", clock=clock, **held | spreads), **others)


def made(rows, device="cuda", capability="9.0"):
    machine = {"gpu": "H200", "capability": capability}
    return Run("full", device, "command", "2026-01-01", None, machine, {"torch": None}, {}, {}, {}, rows)


def told(*rows):
    """The lines of the section's tables."""
    found = report.tables([made(rows)]).get("Fused kernels", "")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines() if line]
    return [line for line in lines if line[0] not in ("block", "---")]


def test_fused_stands_beside_the_eager_peer_the_best_compiled_and_the_goal():
    peers = [timed(SE, TIMM, 1.0), *map(timed, [SE] * 3, COMPILED, (0.9, 0.84, 1.2))]
    ours = timed(SE, Provider("attzoo", form="compiled"), 0.1)   # is no peer's
    (line,) = told(timed(SE, OURS, 0.95), timed(SE, FUSED, 0.8), ours, *peers)
    assert line == [
        "se", "timm, 32x256x56x56, float32, channels first", "inference",
        "1.60 (accept)", "1.25 (accept)", "1.05 (accept)", "1.7, 1.1, 1.05", "1.45, 1.3, 1.2",
    ]   # fmt: skip


@pytest.mark.parametrize(("part", "marks"), [(0.7, ["aim", "aim"]), (0.9, ["missed", "accept"]), (1, ["missed"] * 2)])
def test_a_number_says_which_goal_it_reaches(part, marks):
    (line,) = told(timed(SE, TIMM, 1.0), timed(SE, FUSED, part))
    assert [cell.partition("(")[2].rstrip(")") for cell in line[3:5]] == marks
    assert line[5] == ""   # nothing compiled was timed


def test_what_has_no_goal_has_its_numbers_all_the_same():
    sample = replace(SE, shapes=((1, *MAP[1:]),))
    (line,) = told(timed(sample, TIMM, 1.0), timed(sample, FUSED, 0.5))
    assert line[3:] == ["1.00", "2.00", "", "", ""]


def test_without_a_peer_nothing_is_said_of_one():
    alone = {"reference": "attzoo"}
    (line,) = told(timed(SE, OURS, 1.0, **alone), timed(SE, FUSED, 0.5, **alone))
    assert line[3:6] == ["1.00 (aim)", "", ""]


def test_a_kernel_that_was_not_timed_says_so():
    failed = Row(SE, FUSED, "failed", why="it takes float32", clock="graph")
    (line,) = told(failed, timed(SE, TIMM, 1.0))
    assert line[3:6] == ["failed", "", ""]
    (line,) = told(timed(SE, FUSED, 0.5, status="unsteady"), timed(SE, TIMM, 1.0))
    assert line[3] == "unsteady: 1.00 (aim)"


def test_calls_from_python_have_no_goal_and_no_line():
    assert told(timed(SE, FUSED, 0.5, "calls"), timed(SE, TIMM, 1.0, "calls")) == []


def test_in_a_resnet50_fused_stands_beside_the_plain_network_eager_blocks_and_the_aim():
    rows, aims = [], {"inference": "", "training": "95 %"}
    for mode in aims:
        net = Case("se", ((64, 3, 224, 224),), mode, network="resnet50", variant="timm")
        plain = replace(net, block="none", variant=None)
        rows += [timed(plain, Provider("plain"), 0.7, "calls", reference="plain", ratio=None)]
        rows += [timed(net, who, part, "calls") for who, part in ((OURS, 0.9), (FUSED, 0.75), (TIMM, 1.0))]
    assert told(*rows) == [["se", mode, "93 %", "78 %", "70 %", aim] for mode, aim in aims.items()]


@pytest.mark.parametrize("name", ["full", "kernels"])
def test_no_goal_hides_another(name):
    for case in suites.suite(name, "cuda").cases:
        assert sum(covers(each, case) for each in goals(case.block).calls) <= 1


def test_every_goal_has_a_case_in_the_suite_of_the_kernels_beside_what_is_compiled():
    suite = [case for case in suites.suite("kernels", "cuda").cases if not case.network]
    assert {goal(case) for case in suite} == {*GOALS, None}
    assert {case.block for case in suite if goal(case) is None} == {n for n in attzoo.names() if not goals(n).calls}
    assert {case.variant for case in suite if "peer compiled" not in case.forms} == {"kuc"}   # no peer has no norms
    normless = next(case for case in suite if case.variant == "kuc")
    assert goal(normless).arguments == {"norm": False}
    assert goal(replace(normless, variant="monai")).arguments == {"norm": True}


def test_of_the_peer_alone_it_is_compiled(monkeypatch):
    names = {name: f"mlp.{name}" for name in attzoo.get("se", backend="numpy")(8).weights}
    known = {name: Source(name, name, "SE", "timm", only_channels, names) for name in ("timm", "other")}
    monkeypatch.setattr(providers, "sources", lambda name: known)
    it = subjects.subject(replace(SE, shapes=((1, 8, 2, 2),), forms=frozenset({"eager", "peer compiled"})), "cpu")
    found = [str(racer.provider) for racer in providers.contenders(it)]
    assert found == ["attzoo", "timm", "other", *map(str, COMPILED)]
    it = replace(it, case=replace(it.case, forms=frozenset({"compiled"})))
    assert len([*providers.contenders(it)]) == 3 + 2 * len(COMPILED)


def test_goals_are_further_than_what_is_accepted():
    for each in GOALS:
        copies, *others = zip(each.aim, each.accept, strict=True)
        assert copies[0] < copies[1]
        assert all(aim > accept for aim, accept in others)
    assert {name for name in attzoo.names() if goals(name).resnet50} <= set(suites.in_resnet50())
    assert GOALS


# ---- recorded wins ---------------------------------------------------------------------------------------------------


def test_times_are_compared_by_what_they_take_of_one_reference():
    peer, ours, other = timed(SE, TIMM, 1.0), timed(SE, OURS, 0.8), timed(SE, FUSED, 0.4)
    assert time_ratio(other, peer) == about(0.4)
    found = time_ratio(other, ours)
    assert (found.low, found.median, found.high) == pytest.approx((0.396 / 0.808, 0.5, 0.404 / 0.792))
    assert time_ratio(other, replace(ours, reference="MONAI")) is None
    assert time_ratio(peer, ours) is None
    alone = replace(ours, reference="attzoo", ratio=None)
    assert time_ratio(replace(other, reference="attzoo"), alone) == about(0.4)


def sized(*parts, case=SE, clocks=("graph", "calls"), **others):
    """Rows of 1, 2, ... samples, fused beside eager, which takes 0.9 of the peer's time; no part is no row."""
    rows = []
    for n, part in enumerate(parts, 1):
        at = replace(case, shapes=tuple((n, *shape[1:]) for shape in case.shapes))
        for clock in clocks:
            rows += [timed(at, TIMM, 1.0, clock), timed(at, OURS, 0.9, clock), timed(at, COPY, 0.5, clock, ratio=None)]
            rows += [timed(at, FUSED, 0.9 * part, clock, **others)] if part else []
    return rows


ONE = prod(MAP[1:])   # numbers of a sample


@pytest.mark.parametrize(
    ("parts", "least"),
    [
        ((0.5, 0.6, 0.7), 1),
        ((0.98, 0.6, 0.7), 2),      # within the control
        ((0.5, 1.3, 0.7), 3),       # what is won below a loss is no win
        ((0.5, 0.6, 1.0), None),    # the largest has to be one
        ((None, 0.5, 0.5), 2),      # what was not timed says nothing
        ((None, None, None), None),
    ],
)
def test_a_win_is_at_every_size_from_the_least_on(parts, least):
    found = wins.wins({"a.json": made(sized(*parts))})
    assert [(win.block, win.least, win.source) for win in found] == ([("SE", least * ONE, "a.json")] if least else [])


@pytest.mark.parametrize("status", ["unsteady", "wrong", "failed"])
def test_what_cannot_be_believed_is_no_win(status):
    rows = sized(0.5, 0.5)
    assert wins.wins({"a.json": made([*rows, *sized(0.5, status=status)])})[0].least == 2 * ONE
    shaky = [replace(row, status=status) if row.provider == OURS else row for row in rows]
    assert wins.wins({"a.json": made(shaky)}) == []


def test_a_win_is_one_on_both_clocks():
    rows = [*sized(0.5, 0.5, clocks=("graph",)), *sized(1.2, 0.5, clocks=("calls",))]
    assert [win.least for win in wins.wins({"a.json": made(rows)})] == [2 * ONE]
    slow = [replace(r, ratio=about(0.4)) if (r.provider, r.clock) == (OURS, "calls") else r for r in sized(0.5)]
    assert wins.wins({"a.json": made(slow)}) == []   # eager calls take as little as fused ones


def test_a_win_is_one_in_all_cases_of_a_size_and_in_all_files():
    other = replace(SE, variant="monai")
    assert wins.wins({"a.json": made([*sized(0.5), *sized(1.2, case=other)])}) == []
    assert wins.wins({"a.json": made([*sized(1.2), *sized(0.5, case=other)])}) == []
    files = {"a.json": made(sized(0.5, 0.5)), "b.json": made(sized(1.2, 0.5))}
    assert wins.wins(files) == [Win("SE", (9, 0), "float32", False, False, 2 * ONE, "a.json, b.json")]
    files["b.json"] = made(sized(1.2, 0.5), capability="8.0")   # another GPU
    assert [(win.capability, win.least) for win in wins.wins(files)] == [((8, 0), 2 * ONE), ((9, 0), ONE)]


def test_layouts_dtypes_and_training_are_apart_and_networks_and_halves_of_training_are_nothing():
    given = [
        replace(SE, mode="training"), replace(SE, layout="channels last", dtype="float16"), replace(SE, mode="forward"),
        replace(SE, mode="backward"), replace(SE, network="resnet50"), Case("channel_attention", (MAP,)),
    ]   # fmt: skip
    found = wins.wins({"a.json": made([row for case in given for row in sized(0.5, case=case)])})
    assert [(win.block, win.dtype, win.last, win.training) for win in found] == [
        ("ChannelAttention", "float32", False, False), ("SE", "float16", True, False), ("SE", "float32", False, True),
    ]   # fmt: skip


def test_what_is_printed_is_the_table_that_kernels_auto_goes_by(tmp_path, monkeypatch):
    case = Case("se", ((1, 8, 4, 4),), variant="timm")
    for name, rows in {"cuda": [*sized(1.2, 0.5, case=case), *sized(0.5)], "none": sized(1.2)}.items():
        write(tmp_path / f"{name}.json", made(rows))
    said = CliRunner().invoke(app, ["wins", str(tmp_path / "cuda.json")])
    assert said.exit_code == 0, said.output
    assert all(len(line) <= 120 for line in said.output.splitlines())
    names = {"Win": Win, "Final": tuple}
    exec(said.output.replace("Final[tuple[Win, ...]]", "object"), names)
    assert names["WINS"] == (Win("SE", (9, 0), "float32", False, False, 2 * 8 * 4 * 4, "cuda.json"),)

    class OnGpu:   # all that is asked of an input
        is_cuda, device, dtype = True, torch.device("cuda"), torch.float32

        def __init__(self, samples):
            self.numel, self.is_contiguous = lambda: samples * 8 * 4 * 4, lambda: True

    monkeypatch.setattr(choice, "LEAST", least(names["WINS"]))
    monkeypatch.setattr(choice, "capability", lambda device: (9, 0))
    with torch.no_grad():
        se = attzoo.get("se", backend="torch")
        assert [choice.has_recorded_win(se, OnGpu(n)) for n in (1, 2, 3)] == [False, True, True]
    assert not choice.has_recorded_win(se, OnGpu(3))
    assert wins.table([tmp_path / "none.json"]) == "WINS: Final[tuple[Win, ...]] = ()\n"


def test_the_recorded_wins_are_what_the_committed_runs_say():
    files = sorted((ROOT / "benchmarks" / "results").glob("*_cuda_*.json"))
    names = {"Final": None, "Win": Win}
    exec(wins.table(files).replace(": Final[tuple[Win, ...]]", ""), names)
    assert names["WINS"] == WINS


def test_wins_are_of_cuda(tmp_path):
    write(tmp_path / "cpu.json", made(sized(0.5), device="cpu"))
    with pytest.raises(ValueError, match=r"expected a run on CUDA, got one on cpu in cpu\.json"):
        wins.table([tmp_path / "cpu.json"])
    with pytest.raises(ValueError, match="got none"):
        wins.table([])
