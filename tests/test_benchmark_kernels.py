"""Tests of fused kernels in the benchmark: which rows use them, the report on them, and recorded wins. Need no GPU."""

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
from test_benchmark_measure import by_name
from typer.testing import CliRunner

import attzoo
from attzoo import settings
from attzoo.blocks.sources import only_channels
from attzoo.contract import Source
from attzoo.fast import autograd, choice
from attzoo.fast.wins import WINS, Win, min_elements_by_case
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
GOALS = [kernel_goal for name in attzoo.names() for kernel_goal in goals(name).calls]


# ---- rows that use kernels -------------------------------------------------------------------------------------------

# For a separate process in Triton's interpreter, which is turned on or off when triton is imported.
INTERPRETED = """
import json
import interpreter   # of the tests: makes Triton's interpreter faster
from attzoo import settings
from attzoo.fast import autograd, choice
from benchmarks import measure, providers
from benchmarks.cases import Case
from benchmarks.timer import Pace

calls, should_use_kernels = set(), choice.should_use_kernels

def record(block, *inputs, **options):
    calls.add((settings.chosen, str(inputs[0].dtype)))
    return should_use_kernels(block, *inputs, **options)

choice.should_use_kernels = record
providers.has_kernels, providers.sources = lambda subject: True, lambda name: {}
bench, results = measure.Bench("cpu", {"cpu": Pace(2, 0.0)}), {}
for mode in ("inference", "forward", "backward", "training"):
    rows = measure.measure(Case("se", ((2, 8, 3, 2),), mode, variant="timm"), bench)
    results[mode] = {str(row.provider): [row.status, row.error, row.kept] for row in rows}
results["calls"] = sorted(calls)
results["chosen"] = settings.chosen
print(json.dumps(results))
"""


def test_kernels_are_verified_and_timed_in_every_mode_and_eager_rows_use_none():
    variables = {"TRITON_INTERPRET": "1", "ATTZOO_KERNELS": "triton"}
    variables["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, "-c", INTERPRETED]
    process = subprocess.run(command, env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, check=True)
    results = json.loads(process.stdout)
    for mode in ("inference", "forward", "backward", "training"):
        assert list(results[mode]) == ["attzoo", "attzoo (triton)", "copy"]
        for status, error, saved in (results[mode][name] for name in ("attzoo", "attzoo (triton)")):
            assert status in ("timed", "unsteady")
            assert error < 1e-6
            assert (saved is None) == (mode != "training")
    assert results["calls"] == [["eager", "torch.float32"], ["eager", "torch.float64"], ["triton", "torch.float32"]]
    assert results["chosen"] == "triton"   # the value of ATTZOO_KERNELS


@pytest.fixture
def refusing_kernels(monkeypatch):
    """Offer fused kernels as on a GPU, but let them refuse every call."""
    monkeypatch.setattr(providers, "has_kernels", lambda subject: subject.case.block != "none")
    monkeypatch.setattr(providers, "sources", lambda name: {})
    monkeypatch.setattr(choice, "kernels_refusal", lambda *arguments: "this is a test")


def test_a_kernel_that_refuses_gives_a_failed_row(refusing_kernels):
    rows = by_name(measure.measure(CASE, BENCH))
    assert list(rows) == ["attzoo (triton)", "attzoo", "copy"]
    assert rows["attzoo (triton)"].status == "failed"
    message_start = 'kernels("triton") requires the fused kernels of SE'
    message_end = 'with kernels("auto") this call runs without them'
    assert rows["attzoo (triton)"].why == f"RuntimeError: {message_start}, but this is a test; {message_end}"
    assert rows["attzoo"].status in ("timed", "unsteady")


def test_without_triton_there_is_no_row_of_kernels(refusing_kernels, monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'triton'", name=name)

    monkeypatch.setattr(providers, "import_module", import_module)
    bench = replace(BENCH, absent=set())
    assert list(by_name(measure.measure(CASE, bench))) == ["attzoo", "copy"]
    assert bench.absent == {"triton"}
    assert install("triton") == 'pip install -e ".[triton]" in a clone of attzoo'


def test_kernels_are_not_timed_on_a_cpu():
    subject = subjects.create_subject(CASE, "cpu")
    assert FUSED not in [candidate.provider for candidate in providers.torch_candidates(subject)]


@pytest.mark.parametrize(("block", "has_kernels"), [("se", True), ("cbam", True), ("none", False)])
def test_has_kernels_on_a_gpu_is_true_for_blocks_with_kernels(monkeypatch, block, has_kernels):
    subject = subjects.create_subject(Case(block, ((1, 3, 32, 32),), network="resnet50"), "cpu")
    monkeypatch.setattr(subjects.Subject, "device", torch.device("cuda"))
    assert providers.has_kernels(subject) is has_kernels


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_blocks_of_a_network_use_kernels(refusing_kernels, mode):
    subject = subjects.create_subject(Case("eca", ((1, 3, 32, 32),), mode, network="resnet50", variant="timm"), "cpu")
    (candidate,) = [candidate for candidate in providers.torch_candidates(subject) if candidate.provider == FUSED]
    for calls in ([candidate.outputs], candidate.calls()):
        with attzoo.kernels("eager"), pytest.raises(RuntimeError, match="requires the fused kernels of ECA"):
            calls[0]()
    assert settings.chosen != "triton"


@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_in_a_residual_branch_the_kernels_add_the_shortcut(monkeypatch, name):
    pytest.importorskip("triton")
    has_shortcut, call = [], autograd.Fused.__call__

    def record(self, block, x, shortcut, *inputs, **options):
        has_shortcut.append(shortcut is not None)
        return call(self, block, x, shortcut, *inputs, **options)

    monkeypatch.setattr(autograd.Fused, "__call__", record)
    device = "cuda" if torch.cuda.is_available() else "cpu"   # on a CPU, in Triton's interpreter
    net = Bottleneck(8, 16, 2, lambda channels: attzoo.create(name, channels, backend="torch")).to(device)
    x, cotangent = torch.randn(2, 8, 6, 5, device=device), torch.randn(2, 16, 3, 3, device=device)
    for mode in ("inference", "training"):
        fused, eager = (
            subjects.run(module, mode, [x], cotangent)
            for module in (providers.WithKernels(deepcopy(net)), deepcopy(net))
        )   # fmt: skip
        torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)
    assert has_shortcut == [True, True]


def test_a_network_without_a_block_has_no_row_of_kernels(refusing_kernels):
    subject = subjects.create_subject(Case("none", ((1, 3, 32, 32),), network="resnet50"), "cpu")
    assert [str(candidate.provider) for candidate in providers.torch_candidates(subject)] == ["plain"]


# ---- the report on them; the numbers are invented --------------------------------------------------------------------

MAP = (32, 256, 56, 56)
SE = Case("se", (MAP,), variant="timm")
OURS, TIMM = Provider("attzoo"), Provider("timm")
COMPILED = [Provider("timm", form=form) for form in providers.COMPILED]


def about(value):
    """Return quartiles 1 % from the median."""
    return Spread(0.99 * value, value, 1.01 * value)


def timed(case, provider, relative_time, clock="graph", **fields):
    """Return a row by its time relative to that of timm's eager block, which takes two copies."""
    ratio = None if provider == TIMM else about(relative_time)
    reference = {"reference": "timm", "control": about(1.0), "ratio": ratio}
    spreads = {"seconds": about(relative_time * 1e-3), "copies": None if case.network else about(2 * relative_time)}
    return replace(Row(case, provider, "timed", clock=clock, **reference | spreads), **fields)


def run_with(rows, device="cuda", capability="9.0"):
    """Return a run with these rows."""
    machine = {"gpu": "H200", "capability": capability}
    return Run("full", device, "command", "2026-01-01", None, machine, {"torch": None}, {}, {}, {}, rows)


def kernel_lines(*rows):
    """Return the cells of the tables in the section on fused kernels, without heads."""
    tables = report.tables([run_with(rows)]).get("Fused kernels", "")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.splitlines() if line]
    return [line for line in lines if line[0] not in ("block", "---")]


def test_a_line_has_the_speedups_over_the_eager_and_the_fastest_compiled_peer_and_the_goals():
    peer_rows = [timed(SE, TIMM, 1.0), *map(timed, [SE] * 3, COMPILED, (0.9, 0.84, 1.2))]
    our_row = timed(SE, Provider("attzoo", form="compiled"), 0.1)   # not a peer's
    (line,) = kernel_lines(timed(SE, OURS, 0.95), timed(SE, FUSED, 0.8), our_row, *peer_rows)
    assert line == [
        "se", "timm, 32x256x56x56, float32, channels first", "inference",
        "1.60 (accept)", "1.25 (accept)", "1.05 (accept)", "1.7, 1.1, 1.05", "1.45, 1.3, 1.2",
    ]   # fmt: skip


@pytest.mark.parametrize(("ratio", "marks"), [(0.7, ["aim", "aim"]), (0.9, ["missed", "accept"]), (1, ["missed"] * 2)])
def test_a_number_is_followed_by_the_limit_that_it_meets(ratio, marks):
    (line,) = kernel_lines(timed(SE, TIMM, 1.0), timed(SE, FUSED, ratio))
    assert [cell.partition("(")[2].rstrip(")") for cell in line[3:5]] == marks
    assert line[5] == ""   # no compiled form was timed


def test_a_case_without_a_goal_has_numbers_only():
    case_without_goal = replace(SE, shapes=((1, *MAP[1:]),))
    (line,) = kernel_lines(timed(case_without_goal, TIMM, 1.0), timed(case_without_goal, FUSED, 0.5))
    assert line[3:] == ["1.00", "2.00", "", "", ""]


def test_without_a_peer_there_are_no_speedups():
    reference_row = {"reference": "attzoo"}
    (line,) = kernel_lines(timed(SE, OURS, 1.0, **reference_row), timed(SE, FUSED, 0.5, **reference_row))
    assert line[3:6] == ["1.00 (aim)", "", ""]


def test_failed_and_unsteady_kernels_are_marked():
    failed_row = Row(SE, FUSED, "failed", why="expected float32, got float64", clock="graph")
    (line,) = kernel_lines(failed_row, timed(SE, TIMM, 1.0))
    assert line[3:6] == ["failed", "", ""]
    (line,) = kernel_lines(timed(SE, FUSED, 0.5, status="unsteady"), timed(SE, TIMM, 1.0))
    assert line[3] == "unsteady: 1.00 (aim)"


def test_calls_from_python_have_no_goal_and_no_line():
    assert kernel_lines(timed(SE, FUSED, 0.5, "calls"), timed(SE, TIMM, 1.0, "calls")) == []


def test_a_resnet50_line_has_the_throughput_of_fused_eager_and_peer_and_the_aim():
    rows, aims = [], {"inference": "", "training": "95 %"}
    for mode in aims:
        net = Case("se", ((64, 3, 224, 224),), mode, network="resnet50", variant="timm")
        plain = replace(net, block="none", variant=None)
        rows += [timed(plain, Provider("plain"), 0.7, "calls", reference="plain", ratio=None)]
        rows += [timed(net, provider, ratio, "calls") for provider, ratio in ((OURS, 0.9), (FUSED, 0.75), (TIMM, 1.0))]
    assert kernel_lines(*rows) == [["se", mode, "93 %", "78 %", "70 %", aim] for mode, aim in aims.items()]


@pytest.mark.parametrize("name", ["full", "kernels"])
def test_at_most_one_goal_applies_to_a_case(name):
    for case in suites.suite(name, "cuda").cases:
        assert sum(covers(kernel_goal, case) for kernel_goal in goals(case.block).calls) <= 1


def test_every_goal_has_a_case_in_the_suite_kernels_with_the_peer_compiled():
    suite = [case for case in suites.suite("kernels", "cuda").cases if not case.network]
    assert {goal(case) for case in suite} == {*GOALS, None}
    assert {case.block for case in suite if goal(case) is None} == {n for n in attzoo.names() if not goals(n).calls}
    assert {case.variant for case in suite if "peer compiled" not in case.forms} == {"kuc"}   # all peers have norms
    without_norms = next(case for case in suite if case.variant == "kuc")
    assert goal(without_norms).arguments == {"norm": False}
    assert goal(replace(without_norms, variant="monai")).arguments == {"norm": True}


def test_the_form_peer_compiled_compiles_only_the_first_peer(monkeypatch):
    names = {name: f"mlp.{name}" for name in attzoo.get("se", backend="numpy")(8).weights}
    known_sources = {name: Source(name, name, "SE", "timm", only_channels, names) for name in ("timm", "other")}
    monkeypatch.setattr(providers, "sources", lambda name: known_sources)
    case = replace(SE, shapes=((1, 8, 2, 2),), forms=frozenset({"eager", "peer compiled"}))
    subject = subjects.create_subject(case, "cpu")
    names = [str(candidate.provider) for candidate in providers.torch_candidates(subject)]
    assert names == ["attzoo", "timm", "other", *map(str, COMPILED)]
    subject = replace(subject, case=replace(case, forms=frozenset({"compiled"})))
    assert len([*providers.torch_candidates(subject)]) == 3 + 2 * len(COMPILED)


def test_the_aims_of_goals_are_stricter_than_the_accepted_values():
    for kernel_goal in GOALS:
        copies, *speedups = zip(kernel_goal.aim, kernel_goal.accept, strict=True)
        assert copies[0] < copies[1]
        assert all(aim > accept for aim, accept in speedups)
    assert {name for name in attzoo.names() if goals(name).resnet50} <= set(suites.in_resnet50())
    assert GOALS


# ---- recorded wins ---------------------------------------------------------------------------------------------------


def test_time_ratio_is_the_quotient_of_the_ratios_to_one_reference():
    peer, ours, fused = timed(SE, TIMM, 1.0), timed(SE, OURS, 0.8), timed(SE, FUSED, 0.4)
    assert time_ratio(fused, peer) == about(0.4)
    ratio = time_ratio(fused, ours)
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((0.396 / 0.808, 0.5, 0.404 / 0.792))
    assert time_ratio(fused, replace(ours, reference="MONAI")) is None
    assert time_ratio(peer, ours) is None
    reference_row = replace(ours, reference="attzoo", ratio=None)
    assert time_ratio(replace(fused, reference="attzoo"), reference_row) == about(0.4)


def sized(*ratios, case=SE, clocks=("graph", "calls"), **fields):
    """Return rows with 1, 2, ... samples, whose fused time / eager time are `ratios`; None for no fused row.

    The eager block takes 0.9 of the peer's time.
    """
    rows = []
    for n, ratio in enumerate(ratios, 1):
        at = replace(case, shapes=tuple((n, *shape[1:]) for shape in case.shapes))
        for clock in clocks:
            rows += [timed(at, TIMM, 1.0, clock), timed(at, OURS, 0.9, clock), timed(at, COPY, 0.5, clock, ratio=None)]
            rows += [timed(at, FUSED, 0.9 * ratio, clock, **fields)] if ratio else []
    return rows


ONE = prod(MAP[1:])   # elements of a sample


@pytest.mark.parametrize(
    ("ratios", "least"),
    [
        ((0.5, 0.6, 0.7), 1),
        ((0.98, 0.6, 0.7), 2),      # within the noise
        ((0.5, 1.3, 0.7), 3),       # sizes below a loss do not count
        ((0.5, 0.6, 1.0), None),    # the largest size must be won
        ((None, 0.5, 0.5), 2),      # sizes that were not timed do not count
        ((None, None, None), None),
    ],
)
def test_a_win_has_the_smallest_size_from_which_all_are_won(ratios, least):
    table = wins.wins({"a.json": run_with(sized(*ratios))})
    expected = [("SE", least * ONE, "a.json")] if least else []
    assert [(win.block, win.min_elements, win.source) for win in table] == expected


@pytest.mark.parametrize("status", ["unsteady", "wrong", "failed"])
def test_rows_that_are_not_timed_steadily_do_not_win(status):
    rows = sized(0.5, 0.5)
    assert wins.wins({"a.json": run_with([*rows, *sized(0.5, status=status)])})[0].min_elements == 2 * ONE
    eager_not_timed = [replace(row, status=status) if row.provider == OURS else row for row in rows]
    assert wins.wins({"a.json": run_with(eager_not_timed)}) == []


def test_a_win_requires_both_clocks():
    rows = [*sized(0.5, 0.5, clocks=("graph",)), *sized(1.2, 0.5, clocks=("calls",))]
    assert [win.min_elements for win in wins.wins({"a.json": run_with(rows)})] == [2 * ONE]
    rows = [
        replace(row, ratio=about(0.4)) if (row.provider, row.clock) == (OURS, "calls") else row for row in sized(0.5)
    ]
    assert wins.wins({"a.json": run_with(rows)}) == []   # eager calls are as fast as fused ones


def test_a_win_requires_all_cases_of_a_size_in_all_files():
    monai_case = replace(SE, variant="monai")
    assert wins.wins({"a.json": run_with([*sized(0.5), *sized(1.2, case=monai_case)])}) == []
    assert wins.wins({"a.json": run_with([*sized(1.2), *sized(0.5, case=monai_case)])}) == []
    files = {"a.json": run_with(sized(0.5, 0.5)), "b.json": run_with(sized(1.2, 0.5))}
    assert wins.wins(files) == [Win("SE", (9, 0), "float32", False, False, 2 * ONE, "a.json, b.json")]
    files["b.json"] = run_with(sized(1.2, 0.5), capability="8.0")   # another GPU
    assert [(win.capability, win.min_elements) for win in wins.wins(files)] == [((8, 0), 2 * ONE), ((9, 0), ONE)]


def test_wins_are_separate_by_layout_dtype_and_training_and_ignore_networks_and_single_passes():
    cases = [
        replace(SE, mode="training"), replace(SE, layout="channels last", dtype="float16"), replace(SE, mode="forward"),
        replace(SE, mode="backward"), replace(SE, network="resnet50"), Case("channel_attention", (MAP,)),
    ]   # fmt: skip
    table = wins.wins({"a.json": run_with([row for case in cases for row in sized(0.5, case=case)])})
    assert [(win.block, win.dtype, win.channels_last, win.training) for win in table] == [
        ("ChannelAttention", "float32", False, False), ("SE", "float16", True, False), ("SE", "float32", False, True),
    ]   # fmt: skip


def test_the_printed_table_is_one_that_kernels_auto_uses(tmp_path, monkeypatch):
    case = Case("se", ((1, 8, 4, 4),), variant="timm")
    for name, rows in {"cuda": [*sized(1.2, 0.5, case=case), *sized(0.5)], "none": sized(1.2)}.items():
        write(tmp_path / f"{name}.json", run_with(rows))
    result = CliRunner().invoke(app, ["wins", str(tmp_path / "cuda.json")])
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 120 for line in result.output.splitlines())
    names = {"Win": Win, "Final": tuple}
    exec(result.output.replace("Final[tuple[Win, ...]]", "object"), names)
    assert names["WINS"] == (Win("SE", (9, 0), "float32", False, False, 2 * 8 * 4 * 4, "cuda.json"),)

    class OnGpu:   # the attributes of an input that the choice uses
        is_cuda, device, dtype = True, torch.device("cuda"), torch.float32

        def __init__(self, samples):
            self.numel, self.is_contiguous = lambda: samples * 8 * 4 * 4, lambda: True

    monkeypatch.setattr(choice, "MIN_ELEMENTS", min_elements_by_case(names["WINS"]))
    monkeypatch.setattr(choice, "capability", lambda device: (9, 0))
    with torch.no_grad():
        se = attzoo.get("se", backend="torch")
        assert [choice.has_recorded_win(se, OnGpu(n)) for n in (1, 2, 3)] == [False, True, True]
    assert not choice.has_recorded_win(se, OnGpu(3))
    assert wins.table([tmp_path / "none.json"]) == "WINS: Final[tuple[Win, ...]] = ()\n"


def test_the_recorded_wins_follow_from_the_committed_runs():
    files = sorted((ROOT / "benchmarks" / "results").glob("*_cuda_*.json"))
    names = {"Final": None, "Win": Win}
    exec(wins.table(files).replace(": Final[tuple[Win, ...]]", ""), names)
    assert names["WINS"] == WINS


def test_wins_of_a_run_on_a_cpu_are_refused(tmp_path):
    write(tmp_path / "cpu.json", run_with(sized(0.5), device="cpu"))
    with pytest.raises(ValueError, match=r"expected a run on CUDA, got one on cpu in cpu\.json"):
        wins.table([tmp_path / "cpu.json"])
    with pytest.raises(ValueError, match="got none"):
        wins.table([])
