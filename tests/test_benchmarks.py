"""Tests of timers, memory, networks, cases, result files and the command line. No test asserts a measured time."""

import gc
import itertools
import json
import weakref
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import attzoo
from attzoo import contract, registry
from attzoo.blocks.se.spec import SE
from attzoo.ops import guard
from benchmarks import cases, cuda, facts, memory, nets, run, runs, suites
from benchmarks.__main__ import app
from benchmarks.cases import Case
from benchmarks.measure import Bench, measure
from benchmarks.runs import Provider, Row, Run
from benchmarks.subjects import run as run_of
from benchmarks.suites import Suite, suite
from benchmarks.timer import FEWEST, KEPT_RESULTS, Cpu, Pace, Spread, interleave, paired, spread

# ---- timer -----------------------------------------------------------------------------------------------------------


def test_spread_returns_the_quartiles():
    assert spread([5, 1, 4, 2, 3]) == Spread(2, 3, 4)


def test_ratios_are_paired_within_a_round():
    peer = [1.0, 10.0, 100.0, 1000.0, 2.0]   # the machine slows down and recovers
    times = {"peer": peer, "ours": [0.5 * tensor for tensor in peer], "again": [1.1, 9.0, 100.0, 1010.0, 2.0]}
    assert paired(times, "ours", "peer") == Spread(0.5, 0.5, 0.5)
    assert paired(times, "again", "peer") == Spread(1.0, 1.0, 1.01)
    with pytest.raises(ValueError, match="longer"):
        paired(times | {"ours": [1.0]}, "ours", "peer")


def test_every_provider_has_a_turn_in_every_round_in_all_orders():
    calls = []

    def turn(name, repeats):
        calls.append((name, repeats))
        return 4.0 if name == "a" else 1.0

    turns = {name: lambda repeats, name=name: turn(name, repeats) for name in "abc"}
    times = interleave(turns, Pace(rounds=30, turn=13.0))
    assert calls[:6] == [(name, 1) for name in "aabbcc"]   # twice each: to warm up, and to compute the repeats
    rounds = [dict(calls[i : i + 3]) for i in range(6, len(calls), 3)]
    assert rounds == [{"a": 3, "b": 13, "c": 13}] * 30   # three calls of 4 s fit into 13 s
    assert times == {"a": [4.0] * 30, "b": [1.0] * 30, "c": [1.0] * 30}
    assert len({tuple(round) for round in rounds}) == 6


@pytest.mark.parametrize(("limit", "rounds"), [(999.0, 20), (46.0, 9), (4.0, FEWEST)])
def test_the_limit_reduces_the_rounds_to_the_fewest_at_least(limit, rounds):
    times = interleave({"a": lambda repeats: 2.0, "b": lambda repeats: 0.5}, Pace(20, 3.0, limit))   # 5 s per round
    assert [len(provider_times) for provider_times in times.values()] == [rounds] * 2


def test_a_turn_returns_the_time_per_call():
    now = [0.0]

    def call():
        now[0] += 3.0

    assert Cpu(clock=lambda: now[0]).turn(call)(5) == 3.0
    assert now == [15.0]


def test_the_last_results_of_all_turns_are_kept_alive():
    results, alive_counts = [], []

    def call():
        alive_counts.append(sum(result() is not None for result in results))
        result = Spread(1, 2, 3)
        results.append(weakref.ref(result))
        return result

    cpu = Cpu()
    first_time, second_time = cpu.turn(call), cpu.turn(call)
    first_time(3)
    second_time(KEPT_RESULTS)
    assert alive_counts == [*range(KEPT_RESULTS), *(KEPT_RESULTS,) * 3]


# ---- CUDA: the order of calls, with a fake device --------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(1, 16), (15 << 20, 16), (30 << 20, 8), (103 << 20, 3), (1 << 30, 1)])
def test_sets_of_inputs_are_larger_than_the_cache(size, count):
    assert cuda.sets(size, 60 << 20) == count
    assert count == cuda.MAX_INPUT_SETS or count * size >= 4 * (60 << 20)


@pytest.fixture
def device(monkeypatch):
    """Replace torch.cuda's events and synchronization; return the list of their calls. Events are 2.5 ms apart."""
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            calls.append("event")

        def synchronize(self):
            calls.append("wait")

        def elapsed_time(self, last):
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    return calls


def test_a_replay_is_queued_while_the_device_sleeps(device, monkeypatch):
    class Graph:
        def __init__(self, call):
            self.replay = call

    monkeypatch.setattr(cuda, "capture_graph", Graph)
    turn = cuda.replay_turn([lambda: device.append("a"), lambda: device.append("b")])
    assert turn(1) == turn(1) == 2.5e-3
    assert device == ["sleep", "event", "a", "event", "wait", "sleep", "event", "b", "event", "wait"]


def test_the_tensors_of_a_graph_live_as_long_as_its_turn(device, monkeypatch):
    class Graph:   # does not reference tensors, like a real graph
        def __init__(self, call):
            self.replay = lambda: None

    monkeypatch.setattr(cuda, "capture_graph", Graph)
    tensor = torch.zeros(1)
    alive = weakref.ref(tensor)
    turn = cuda.replay_turn([lambda tensor=tensor: tensor])
    del tensor
    gc.collect()
    assert alive() is not None
    del turn
    gc.collect()
    assert alive() is None


@pytest.fixture
def capturing(device, monkeypatch):
    """Replace torch.cuda's streams and graphs too."""

    class Stream:
        def wait_stream(self, stream):
            device.append("stream waits")

    class Graph:
        replay, capture_begin, capture_end = (
            lambda self, name=name: device.append(name) for name in ("replay", "begin", "end")
        )

    cuda.capture_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    yield device
    cuda.capture_stream.cache_clear()


def test_a_graph_is_captured_after_the_call_has_run_on_the_stream(capturing):
    cuda.capture_graph(lambda: capturing.append("call"))
    warm_up = ["stream waits", *["call"] * 3, "stream waits"]
    assert capturing == [*warm_up, "begin", "call", "end", "replay", "replay"]


def test_a_capture_ends_if_the_call_raises(capturing):
    def call():
        capturing.append("call")
        if "begin" in capturing:
            raise ValueError("not under capture")

    with pytest.raises(ValueError, match="not under capture"):
        cuda.capture_graph(call)
    assert capturing[-3:] == ["begin", "call", "end"]


def test_calls_are_timed_until_the_device_has_finished(device, monkeypatch):
    clock = itertools.count(step=2.0)
    monkeypatch.setattr(cuda, "perf_counter", lambda: next(clock))
    assert cuda.call_turn([lambda: device.append("a"), lambda: device.append("b")])(4) == 0.5
    assert device == ["synchronize", *"abab", "synchronize"]


# ---- memory, networks, facts -----------------------------------------------------------------------------------------


def test_kept_counts_each_saved_tensor_once_and_no_inputs():
    class Product(torch.nn.Module):
        def forward(self, x):
            return x * x.exp()   # autograd saves x, an input, and twice the result of exp, 10 elements of 4 bytes

    assert memory.saved_bytes(Product(), [torch.ones(10)]) == 40


def test_peak_counts_the_tensors_in_use_at_once():
    def call():
        first_tensor = torch.zeros(100)
        second_tensor = first_tensor + 1
        del first_tensor
        return second_tensor * 2 + 3   # b, b * 2 and the sum

    assert memory.peak_bytes(call) == 1200


def test_peak_does_not_count_tensors_from_before_the_call():
    x = torch.zeros(100)
    assert memory.peak_bytes(lambda: x.detach()[10:] * 2) == 360


@pytest.mark.parametrize(
    ("call", "count"),
    [
        (lambda x: x + 1, 400 + 400),
        (lambda x: x + x, 400 + 400),   # x is read once
        (lambda x: x.mul_(2), 400 + 400),
        (lambda x: x.copy_(torch.ones(100)), 400 + 400 + 400),   # writes the ones, reads them, writes x
        (lambda x: torch.mul(x, 2, out=torch.empty(100)), 400 + 400),
        (lambda x: x.view(10, 10).t().detach(), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.expand(50, 100) * torch.empty(50, 100), 400 + 20000 + 20000),
        (lambda x: x.view(10, 10) @ x.view(10, 10)[:, :5], 400 + 200 + 200),
        (lambda x: torch.cat([x, x[:50]]), 400 + 200 + 600),
        (lambda x: x.max(0), 400 + 4 + 8),   # the maximum and its index
    ],
)
def test_every_operator_counts_what_it_reads_and_writes(call, count):
    x = torch.arange(100.0)
    assert memory.operator_bytes(lambda: call(x)) == count


@pytest.mark.parametrize("count", [memory.operator_bytes, memory.peak_bytes])
def test_blocks_have_the_forms_that_are_timed_while_bytes_are_counted(count):
    answers = []
    count(lambda: answers.append(guard.is_plain(torch.ones(1))))
    assert answers == [True]


def test_resnet50_has_the_published_parameters():
    net = nets.ResNet50()
    assert sum(parameter.numel() for parameter in net.parameters()) == 25_557_032   # torchvision's
    assert net.eval()(torch.zeros(1, 3, 33, 40)).shape == (1, 1000)


class WithShortcut(torch.nn.Module):
    """A block that takes a shortcut. Its result, -|shortcut|, would be 0 after another relu."""

    def forward(self, x, shortcut=None, act=None):
        return -shortcut.abs() if act == "relu" else x


class WithoutShortcut(torch.nn.Module):
    """A block that takes only x, as in other libraries."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_block_that_takes_a_shortcut_ends_the_branch_in_one_call():
    x = torch.randn(2, 8, 4, 3)
    assert torch.equal(nets.Bottleneck(8, 8, 1, lambda channels: WithShortcut())(x), -x.abs())
    net = nets.Bottleneck(8, 8, 1, lambda channels: WithoutShortcut(WithShortcut()))
    assert torch.equal(net(x), (net.conv3(net.conv2(net.conv1(x).relu()).relu()) + x).relu())
    net.put(WithShortcut())
    assert torch.equal(net(x), -x.abs())


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", [name for name in attzoo.names() if attzoo.info(name).residual])
def test_the_end_of_a_branch_in_one_call_equals_addition_and_relu(name, training):
    with_one_call = nets.Bottleneck(8, 16, 2, lambda channels: attzoo.info(name).create(channels, backend="torch"))
    assert with_one_call.takes_shortcut
    with_one_call.double().train(training)
    with torch.no_grad():
        # so that some relu inputs are negative
        for norm in (part[1] for part in (with_one_call.conv3, with_one_call.shortcut)):
            norm.weight.normal_()
            norm.bias.normal_()
    with_separate_calls = deepcopy(with_one_call)
    with_separate_calls.put(WithoutShortcut(with_separate_calls.attention))
    assert not with_separate_calls.takes_shortcut
    x, cotangent = torch.randn(3, 8, 6, 5).double(), torch.randn(3, 16, 3, 3).double()
    mode = "training" if training else "inference"
    actual, expected = (run_of(net, mode, [x], cotangent) for net in (with_one_call, with_separate_calls))
    assert 0 < (actual[0] == 0).double().mean() < 1
    for tensor, expected_tensor in zip(actual, expected, strict=True):
        torch.testing.assert_close(tensor, expected_tensor, rtol=0, atol=1e-12)


def test_facts_are_serializable_and_contain_no_path(monkeypatch):
    monkeypatch.setattr(facts, "LARGE", 4096)
    recorded = {
        "machine": facts.machine("cpu"),
        "versions": facts.versions(),
        "ceilings": facts.ceilings("cpu"),
        "commit": facts.commit(),
    }
    assert str(Path(__file__).parents[1]) not in json.dumps(recorded)
    assert recorded["versions"]["torch"] == torch.__version__
    assert all(ceiling > 0 for ceiling in recorded["ceilings"].values())


def test_cuda_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="expected a CUDA device"):
        facts.configure("cuda")


# ---- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "device"), suites.MINUTES)
def test_suites_contain_every_block_and_no_case_twice(name, device):
    all_cases = suite(name, device).cases
    blocks = {case.block for case in all_cases if not case.network}
    assert blocks == (set() if name == "networks" else set(attzoo.names()))
    assert len(set(map(str, all_cases))) == len(all_cases)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_full_suite_varies_every_property_of_every_block(device):
    all_cases = suite("full", device).cases
    single_block_cases = [case for case in all_cases if not case.network]
    for name in attzoo.names():
        block_cases = [case for case in single_block_cases if case.block == name]
        assert {case.mode for case in block_cases} == set(cases.MODES)
        assert {case.dtype for case in block_cases} == set(cases.DTYPES)
        assert {case.layout for case in block_cases} == set(cases.LAYOUTS)
        assert {len(case.shapes[0]) - 2 for case in block_cases} == {1, 2, 3}
        assert min(case.shapes[0][0] for case in block_cases) == 1
    assert {form for case in single_block_cases for form in case.forms} == {"eager", "compiled", "keras"}
    assert {(case.network, case.mode) for case in all_cases if case.network} == {
        (net, mode) for net in ("resnet50", "unet") for mode in cases.BOTH
    }


def test_a_new_block_is_timed_in_every_suite_without_a_peer(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    monkeypatch.setitem(registry.BLOCKS, "scale", "attzoo_scale:Scale")   # has no sources, goals or kernels
    for name, device in suites.MINUTES:
        block_cases = [case for case in suite(name, device).cases if case.block == "scale"]
        expected = set() if name == "networks" else {(None, None)}
        assert {(case.network, case.variant) for case in block_cases} == expected
    ranks = {len(case.shapes[0]) - 2 for case in suite("full", "cpu", ("scale",)).cases if not case.network}
    assert ranks == {1, 2, 3}
    rows = measure(Case("scale", ((2, 8, 6, 6),), "training"), Bench("cpu", PACE))
    assert [str(row.provider) for row in rows] == ["attzoo", "copy"]
    assert {row.status for row in rows} <= {"timed", "unsteady"}


def test_ranks_that_a_block_refuses_are_not_timed(monkeypatch):
    def check_inputs(spec, x, channels_last=False):
        contract.check_shape(x, spec.channels, 2, False)

    monkeypatch.setattr(SE, "check_inputs", check_inputs)
    cases.spec_of.cache_clear()
    all_cases = suite("full", "cpu", ("se", "eca")).cases
    ranks = {(case.block, len(case.shapes[0]) - 2) for case in all_cases if not case.network}
    assert ranks == {("se", 2), ("eca", 1), ("eca", 2), ("eca", 3)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_suite_blocks_has_every_block_at_three_sizes_as_it_is_and_as_its_reference_computes_it(device):
    all_cases = suite("blocks", device).cases
    assert {(case.dtype, case.layout, case.network) for case in all_cases} == {("float32", "channels first", None)}
    for name in attzoo.names():
        settings = {(case.shapes[0], case.mode, case.variant) for case in all_cases if case.block == name}
        variants = {None, next((source.variant for source in registry.sources(name).values()), None)}
        assert settings == {*itertools.product(cases.STAGES[device], cases.BOTH, variants)}
    first_reference = next(i for i, case in enumerate(all_cases) if case.variant)
    assert all(case.variant for case in all_cases[first_reference:])   # a run that is out of time has all default cases


def test_a_suite_can_be_limited_to_some_blocks():
    assert {case.block for case in suite("full", "cpu", ("eca",)).cases} == {"eca", "none"}


# ---- files -----------------------------------------------------------------------------------------------------------


def timed(ratio, control=(0.98, 1.0, 1.02)):
    """Return a row with the status "timed" and these quartiles."""
    spreads = {"ratio": Spread(*ratio), "control": Spread(*control), "seconds": Spread(1e-3, 2e-3, 3e-3)}
    case = Case("se", ((8, 64, 56, 56),), "training", variant="timm")
    return Row(case, Provider("attzoo"), "timed", error=1e-7, samples=9, reference="timm", moved=10, **spreads)


def run_with(*rows):
    """Return a run with these rows."""
    return Run("quick", "cpu", "command", "2026-01-01", None, {}, {"torch": None}, {}, {"copy GB/s": 1.5}, {}, rows)


@pytest.mark.parametrize(
    ("ratio", "control", "verdict"),
    [
        ((1.03, 1.06, 1.08), (0.98, 1.0, 1.02), "slower"),
        ((1.03, 1.05, 1.08), (0.98, 1.0, 1.02), "same"),
        ((1.01, 1.06, 1.08), (0.98, 1.0, 1.02), "same"),
        ((0.92, 0.95, 0.97), (0.98, 1.0, 1.02), "faster"),
        ((0.93, 0.96, 0.97), (0.98, 1.0, 1.02), "same"),
        ((0.92, 0.95, 0.99), (0.98, 1.0, 1.02), "same"),
        ((1.01, 1.06, 1.08), (0.91, 0.92, 0.94), "slower"),
        ((0.90, 0.91, 0.92), (0.91, 0.92, 0.94), "same"),
    ],
)
def test_the_verdict_depends_on_ratio_and_control(ratio, control, verdict):
    assert timed(ratio, control).verdict == verdict
    assert replace(timed(ratio, control), status="unsteady").verdict == "unsteady"


def test_a_written_run_is_read_unchanged(tmp_path):
    wrong_row = replace(timed((1, 1, 1)), status="wrong", why="0.1 off", ratio=None, provider=Provider("plain", "jax"))
    written = run_with(timed((0.7, 0.75, 0.8)), wrong_row)
    runs.write(tmp_path / "new" / "r.json", written)
    read_arrays = runs.read(tmp_path / "new" / "r.json")
    assert replace(read_arrays, rows=tuple(read_arrays.rows), left=()) == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]


def test_a_run_does_not_replace_an_existing_file(tmp_path):
    (tmp_path / "r.json").write_text("existing")
    with pytest.raises(FileExistsError, match="expected a new result file"):
        runs.write(tmp_path / "r.json", run_with())
    assert (tmp_path / "r.json").read_text() == "existing"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"schema": 1}', '{"schema": 2}', '{"schema": 2, "rows": [{}]}', '{"schema": 2, "rows": 7, "more": 1}'],
)
def test_invalid_result_files_are_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json"):
        runs.read(tmp_path / "r.json")


def test_an_unknown_status_is_refused(tmp_path):
    runs.write(tmp_path / "r.json", run_with(replace(timed((1, 1, 1)), status="unknown")))
    with pytest.raises(ValueError, match="got 'unknown'"):
        runs.read(tmp_path / "r.json")


# ---- a run -----------------------------------------------------------------------------------------------------------

PACE = {"cpu": Pace(3, 0.0)}
TINY = (Case("se", ((2, 8, 6, 6),)), Case("eca", ((2, 8, 6, 6),), "training"))


@pytest.fixture
def tiny(monkeypatch):
    """Replace the suite by two cases and the pace by a short one, and restore the number of threads afterwards."""
    monkeypatch.setattr(run, "suite", lambda *arguments: Suite(TINY, 5.0))
    monkeypatch.setitem(run.PACE, "quick", PACE)
    monkeypatch.setattr(facts, "keep_pages", lambda: False)
    monkeypatch.setattr(facts, "LARGE", 4096)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_quick_run_writes_its_file_and_prints_the_path(tiny, tmp_path):
    path = tmp_path / "q.json"
    result = CliRunner().invoke(app, ["run", "--device", "cpu", "--out", str(path)])
    assert result.exit_code == 0, result.output
    assert f"report {path}" in result.output.replace("\n", "")
    read_arrays = runs.read(path)
    assert [(row.case, str(row.provider)) for row in read_arrays.rows] == [
        (case, provider) for case in TINY for provider in ("attzoo", "copy")
    ]
    assert {row.status for row in read_arrays.rows} <= {"timed", "unsteady"}
    assert all(row.seconds.median > 0 for row in read_arrays.rows)
    assert read_arrays.flags["threads"] == 1
    assert not read_arrays.left


def test_an_existing_file_is_refused_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", None)
    (tmp_path / "q.json").write_text("existing")
    with pytest.raises(FileExistsError):
        run.run("quick", "cpu", out=tmp_path / "q.json")


def test_no_case_is_started_after_the_time_is_over(monkeypatch):
    monkeypatch.setattr(run, "measure", lambda case, bench, keras_candidates: [replace(timed((1, 1, 1)), case=case)])
    clock = itertools.count(step=50)
    monkeypatch.setattr(run, "monotonic", lambda: next(clock))
    rows, cases_left = run.measure_cases(Suite(TINY * 3, 1.0), Bench("cpu", PACE), lambda subject: ())
    assert [row.case for row in rows] == [TINY[0]]
    assert cases_left == (TINY * 3)[1:]


def test_rows_from_before_an_interruption_are_returned(monkeypatch):
    def measure(case, bench, keras_candidates):
        if case == TINY[1]:
            raise KeyboardInterrupt
        return [replace(timed((1, 1, 1)), case=case)]

    monkeypatch.setattr(run, "measure", measure)
    rows, cases_left = run.measure_cases(Suite(TINY, 1.0), Bench("cpu", PACE), lambda subject: ())
    assert ([row.case for row in rows], cases_left) == ([TINY[0]], TINY[1:])


def test_the_other_cases_are_measured_if_one_raises(monkeypatch):
    def measure(case, bench, keras_candidates):
        if case == TINY[0]:
            raise RuntimeError("the device failed")
        return [replace(timed((1, 1, 1)), case=case)]

    monkeypatch.setattr(run, "measure", measure)
    rows, cases_left = run.measure_cases(Suite(TINY, 1.0), Bench("cpu", PACE), lambda subject: ())
    assert [(row.case, row.status) for row in rows] == [(TINY[0], "failed"), *((case, "timed") for case in TINY[1:])]
    assert rows[0].why == "RuntimeError: the device failed"
    assert not cases_left


def test_the_remaining_time_is_estimated_by_weight():
    eager, keras = TINY[0], replace(TINY[1], forms=frozenset({"eager", "keras"}))
    two_cases = Suite((eager, keras), 60.0)
    assert run.minutes_left(two_cases, 0, 0.0) == 60.0
    assert run.minutes_left(two_cases, 1, 20.0) == 20.0 * (1 + run.WEIGHT["keras"]) / 60
    assert run.minutes_left(replace(two_cases, minutes=1.0), 1, 20.0) == 1.0 - 20 / 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slow", "cpu"), "suite must be one of quick, full, kernels, wins, networks, blocks, got 'slow'"),
        (("kernels", "cpu"), "device must be cuda for suite kernels, got cpu: set --device cuda"),
        (("quick", "tpu"), "device must be one of cpu, cuda, got 'tpu'"),
        (("quick", "cpu", ("se", "transformer")), "blocks must be among .*, got transformer"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run.run(*arguments)


def test_the_summary_lists_verdicts_omitted_cases_and_missing_packages():
    result = replace(run_with(timed((0.7, 0.75, 0.8))), left=["se 1x2x3"], absent={"timm": "pip"})
    assert run.summary(result).startswith("1 rows; of attzoo's, 1 faster\n1 cases left out")
    assert "not installed: timm" in run.summary(result)


def test_a_command_is_recorded_without_paths_of_the_machine(monkeypatch):
    monkeypatch.setattr(run.sys, "argv", ["benchmarks", "run", "--suite", "quick", "--out", "/home/somebody/a b.json"])
    assert run.command() == "python -m benchmarks run --suite quick --out 'a b.json'"
