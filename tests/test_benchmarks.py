"""The protocol's arithmetic, the cases, the files and the command line. No test here asserts a time."""

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
from benchmarks import cases, cuda, facts, memory, nets, run, runs, suites
from benchmarks.__main__ import app
from benchmarks.cases import Case
from benchmarks.measure import Bench, measure
from benchmarks.runs import Provider, Row, Run
from benchmarks.subjects import run as run_of
from benchmarks.suites import Suite, suite
from benchmarks.timer import FEWEST, KEPT, Cpu, Pace, Spread, interleave, paired, spread

# ---- timer -----------------------------------------------------------------------------------------------------------


def test_spread_is_the_quartiles():
    assert spread([5, 1, 4, 2, 3]) == Spread(2, 3, 4)


def test_ratios_are_paired_within_a_round():
    peer = [1.0, 10.0, 100.0, 1000.0, 2.0]   # on a machine that slows down and recovers
    times = {"peer": peer, "ours": [0.5 * t for t in peer], "again": [1.1, 9.0, 100.0, 1010.0, 2.0]}
    assert paired(times, "ours", "peer") == Spread(0.5, 0.5, 0.5)
    assert paired(times, "again", "peer") == Spread(1.0, 1.0, 1.01)
    with pytest.raises(ValueError, match="longer"):
        paired(times | {"ours": [1.0]}, "ours", "peer")


def test_everybody_has_a_turn_in_every_round_and_nobody_always_the_same_neighbour():
    called = []

    def turn(name, repeats):
        called.append((name, repeats))
        return 4.0 if name == "a" else 1.0

    turns = {name: lambda repeats, name=name: turn(name, repeats) for name in "abc"}
    times = interleave(turns, Pace(rounds=30, turn=13.0))
    assert called[:6] == [(name, 1) for name in "aabbcc"]   # each twice: to warm up, and to see how often it fits
    rounds = [dict(called[i : i + 3]) for i in range(6, len(called), 3)]
    assert rounds == [{"a": 3, "b": 13, "c": 13}] * 30   # 13 s hold three calls of 4 s
    assert times == {"a": [4.0] * 30, "b": [1.0] * 30, "c": [1.0] * 30}
    assert len({tuple(round) for round in rounds}) == 6


@pytest.mark.parametrize(("limit", "rounds"), [(999.0, 20), (46.0, 9), (4.0, FEWEST)])
def test_rounds_that_would_last_too_long_are_fewer(limit, rounds):
    times = interleave({"a": lambda repeats: 2.0, "b": lambda repeats: 0.5}, Pace(20, 3.0, limit))   # 5 s
    assert [len(each) for each in times.values()] == [rounds] * 2


def test_a_turn_is_the_time_of_one_of_its_calls():
    now = [0.0]

    def call():
        now[0] += 3.0

    assert Cpu(clock=lambda: now[0]).turn(call)(5) == 3.0
    assert now == [15.0]


def test_the_last_results_of_all_are_kept_alive():
    made, alive = [], []

    def call():
        alive.append(sum(result() is not None for result in made))
        result = Spread(1, 2, 3)
        made.append(weakref.ref(result))
        return result

    cpu = Cpu()
    one, other = cpu.turn(call), cpu.turn(call)
    one(3)
    other(KEPT)
    assert alive == [*range(KEPT), *(KEPT,) * 3]


# ---- CUDA, of which the order of things can be seen without a device -------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(1, 16), (15 << 20, 16), (30 << 20, 8), (103 << 20, 3), (1 << 30, 1)])
def test_sets_of_inputs_are_larger_than_the_cache(size, count):
    assert cuda.sets(size, 60 << 20) == count
    assert count == cuda.MOST or count * size >= 4 * (60 << 20)


@pytest.fixture
def device(monkeypatch):
    """A device that notes what it is told to do; between its events pass 2.5 ms."""
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def synchronize(self):
            told.append("wait")

        def elapsed_time(self, last):
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("synchronize"))
    return told


def test_a_replay_is_queued_before_the_device_is_free(device, monkeypatch):
    class Graph:
        def __init__(self, call):
            self.replay = call

    monkeypatch.setattr(cuda, "capture_graph", Graph)
    turn = cuda.replay_turn([lambda: device.append("a"), lambda: device.append("b")])
    assert turn(1) == turn(1) == 2.5e-3
    once = ["sleep", "event", "a", "event", "wait"]
    assert device == once + [step.replace("a", "b") if step == "a" else step for step in once]


def test_what_a_graph_works_on_lives_as_long_as_its_turns(device, monkeypatch):
    class Graph:   # which knows addresses and holds no tensor
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
    """The same device, which can also capture."""

    class Stream:
        def wait_stream(self, other):
            device.append("stream waits")

    class Graph:
        replay, capture_begin, capture_end = (
            lambda self, said=said: device.append(said) for said in ("replay", "begin", "end")
        )

    cuda.capture_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    yield device
    cuda.capture_stream.cache_clear()


def test_a_graph_is_captured_where_the_call_has_run(capturing):
    cuda.capture_graph(lambda: capturing.append("call"))
    waits = ["stream waits"]
    assert capturing == [*waits, *["call"] * 3, *waits, "begin", "call", "end", "replay", "replay"]


def test_a_capture_ends_also_when_the_call_fails_in_it(capturing):
    def call():
        capturing.append("call")
        if "begin" in capturing:
            raise ValueError("not under capture")

    with pytest.raises(ValueError, match="not under capture"):
        cuda.capture_graph(call)
    assert capturing[-3:] == ["begin", "call", "end"]


def test_calls_are_timed_until_the_device_is_done(device, monkeypatch):
    clock = itertools.count(step=2.0)
    monkeypatch.setattr(cuda, "perf_counter", lambda: next(clock))
    assert cuda.call_turn([lambda: device.append("a"), lambda: device.append("b")])(4) == 0.5
    assert device == ["synchronize", *"abab", "synchronize"]


# ---- memory, networks, facts -----------------------------------------------------------------------------------------


def test_kept_counts_each_thing_that_autograd_holds_once_and_no_input():
    class Product(torch.nn.Module):
        def forward(self, x):
            return x * x.exp()   # holds x, an input, and twice exp's result, 10 numbers of 4 bytes

    assert memory.kept(Product(), [torch.ones(10)]) == 40


def test_peak_is_what_is_alive_at_once():
    def call():
        a = torch.zeros(100)
        b = a + 1
        del a
        return b * 2 + 3   # b, b * 2 and the sum

    assert memory.peak(call) == 1200


def test_what_was_there_before_does_not_count():
    x = torch.zeros(100)
    assert memory.peak(lambda: x.detach()[10:] * 2) == 360


def test_resnet50_has_the_published_parameters():
    net = nets.ResNet50()
    assert sum(p.numel() for p in net.parameters()) == 25_557_032   # torchvision's
    assert net.eval()(torch.zeros(1, 3, 33, 40)).shape == (1, 1000)


class Ends(torch.nn.Module):
    """Takes a shortcut, and shows what it got: a second relu would leave nothing of it."""

    def forward(self, x, shortcut=None, act=None):
        return -shortcut.abs() if act == "relu" else x


class Alone(torch.nn.Module):
    """A block as other libraries have it: called with x, and no more."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_block_that_takes_a_shortcut_ends_the_branch_in_one_call():
    x = torch.randn(2, 8, 4, 3)
    assert torch.equal(nets.Bottleneck(8, 8, 1, lambda channels: Ends())(x), -x.abs())
    net = nets.Bottleneck(8, 8, 1, lambda channels: Alone(Ends()))
    assert torch.equal(net(x), (net.conv3(net.conv2(net.conv1(x).relu()).relu()) + x).relu())
    net.put(Ends())   # whichever block it had before
    assert torch.equal(net(x), -x.abs())


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", [name for name in attzoo.names() if attzoo.info(name).residual])
def test_ending_the_branch_is_the_addition_and_the_relu(name, training):
    ours = nets.Bottleneck(8, 16, 2, lambda channels: attzoo.create(name, channels, backend="torch"))
    assert ours.ends
    ours.double().train(training)
    with torch.no_grad():
        for norm in (part[1] for part in (ours.conv3, ours.shortcut)):   # where the relu cuts off some
            norm.weight.normal_()
            norm.bias.normal_()
    apart = deepcopy(ours)
    apart.put(Alone(apart.attention))
    assert not apart.ends
    x, cotangent = torch.randn(3, 8, 6, 5).double(), torch.randn(3, 16, 3, 3).double()
    mode = "training" if training else "inference"
    got, wanted = (run_of(net, mode, [x], cotangent) for net in (ours, apart))
    assert 0 < (got[0] == 0).double().mean() < 1
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


def test_facts_can_be_printed_and_hold_no_path(monkeypatch):
    monkeypatch.setattr(facts, "LARGE", 4096)
    told = {
        "machine": facts.machine("cpu"),
        "versions": facts.versions(),
        "ceilings": facts.ceilings("cpu"),
        "commit": facts.commit(),
    }
    assert str(Path(__file__).parents[1]) not in json.dumps(told)
    assert told["versions"]["torch"] == torch.__version__
    assert all(ceiling > 0 for ceiling in told["ceilings"].values())


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="expected a CUDA device"):
        facts.configure("cuda")


# ---- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "device"), suites.MINUTES)
def test_suites_hold_every_block_once(name, device):
    chosen = suite(name, device).cases
    alone = {case.block for case in chosen if not case.network}
    assert alone == (set() if name == "networks" else set(attzoo.names()))
    assert len(set(map(str, chosen))) == len(chosen)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_full_suite_has_every_axis(device):
    chosen = suite("full", device).cases
    blocks = [case for case in chosen if not case.network]
    for name in attzoo.names():
        own = [case for case in blocks if case.block == name]
        assert {case.mode for case in own} == set(cases.MODES)
        assert {case.dtype for case in own} == set(cases.DTYPES)
        assert {case.layout for case in own} == set(cases.LAYOUTS)
        assert {len(case.shapes[0]) - 2 for case in own} == {1, 2, 3}
        assert min(case.shapes[0][0] for case in own) == 1
    assert {form for case in blocks for form in case.forms} == {"eager", "compiled", "keras"}
    assert {(case.network, case.mode) for case in chosen if case.network} == {
        (net, mode) for net in ("resnet50", "unet") for mode in cases.BOTH
    }


def test_a_new_block_is_timed_in_every_suite_without_a_peer(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    monkeypatch.setitem(registry.BLOCKS, "scale", "attzoo_scale:Scale")   # has neither sources nor goals nor kernels
    for name, device in suites.MINUTES:
        own = [case for case in suite(name, device).cases if case.block == "scale"]
        assert {(case.network, case.variant) for case in own} == (set() if name == "networks" else {(None, None)})
    ranks = {len(case.shapes[0]) - 2 for case in suite("full", "cpu", ("scale",)).cases if not case.network}
    assert ranks == {1, 2, 3}
    rows = measure(Case("scale", ((2, 8, 6, 6),), "training"), Bench("cpu", PACE))
    assert [str(row.provider) for row in rows] == ["attzoo", "copy"]
    assert {row.status for row in rows} <= {"timed", "unsteady"}


def test_a_rank_that_a_block_refuses_is_not_timed(monkeypatch):
    def check_inputs(spec, x, channels_last=False):
        contract.check_shape(x, spec.channels, 2, False)

    monkeypatch.setattr(SE, "check_inputs", check_inputs)
    cases.spec_of.cache_clear()
    chosen = suite("full", "cpu", ("se", "eca")).cases
    ranks = {(case.block, len(case.shapes[0]) - 2) for case in chosen if not case.network}
    assert ranks == {("se", 2), ("eca", 1), ("eca", 2), ("eca", 3)}


def test_blocks_can_be_chosen():
    assert {case.block for case in suite("full", "cpu", ("eca",)).cases} == {"eca", "none"}


# ---- files -----------------------------------------------------------------------------------------------------------


def timed(ratio, control=(0.98, 1.0, 1.02)):
    spreads = {"ratio": Spread(*ratio), "control": Spread(*control), "seconds": Spread(1e-3, 2e-3, 3e-3)}
    case = Case("se", ((8, 64, 56, 56),), "training", variant="timm")
    return Row(case, Provider("attzoo"), "timed", error=1e-7, samples=9, reference="timm", moved=10, **spreads)


def made(*rows):
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
def test_verdict_is_by_the_control(ratio, control, verdict):
    assert timed(ratio, control).verdict == verdict
    assert replace(timed(ratio, control), status="unsteady").verdict == "unsteady"


def test_a_run_comes_back_as_it_went(tmp_path):
    wrong = replace(timed((1, 1, 1)), status="wrong", why="0.1 off", ratio=None, provider=Provider("plain", "jax"))
    went = made(timed((0.7, 0.75, 0.8)), wrong)
    runs.write(tmp_path / "new" / "r.json", went)
    again = runs.read(tmp_path / "new" / "r.json")
    assert replace(again, rows=tuple(again.rows), left=()) == went
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]


def test_a_run_never_replaces_another(tmp_path):
    (tmp_path / "r.json").write_text("precious")
    with pytest.raises(FileExistsError, match="never merged"):
        runs.write(tmp_path / "r.json", made())
    assert (tmp_path / "r.json").read_text() == "precious"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"schema": 1}', '{"schema": 2}', '{"schema": 2, "rows": [{}]}', '{"schema": 2, "rows": 7, "more": 1}'],
)
def test_what_is_no_run_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json"):
        runs.read(tmp_path / "r.json")


def test_an_unknown_status_is_refused(tmp_path):
    runs.write(tmp_path / "r.json", made(replace(timed((1, 1, 1)), status="splendid")))
    with pytest.raises(ValueError, match="splendid"):
        runs.read(tmp_path / "r.json")


# ---- a run -----------------------------------------------------------------------------------------------------------

PACE = {"cpu": Pace(3, 0.0)}
TINY = (Case("se", ((2, 8, 6, 6),)), Case("eca", ((2, 8, 6, 6),), "training"))


@pytest.fixture
def tiny(monkeypatch):
    """A suite of two cases, and this process as it was: others test in it."""
    monkeypatch.setattr(run, "suite", lambda *asked: Suite(TINY, 5.0))
    monkeypatch.setitem(run.PACE, "quick", PACE)
    monkeypatch.setattr(facts, "keep_pages", lambda: False)
    monkeypatch.setattr(facts, "LARGE", 4096)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_quick_run_writes_its_file_and_says_so(tiny, tmp_path):
    path = tmp_path / "q.json"
    said = CliRunner().invoke(app, ["run", "--device", "cpu", "--out", str(path)])
    assert said.exit_code == 0, said.output
    assert f"report {path}" in said.output.replace("\n", "")
    came = runs.read(path)
    assert [(row.case, str(row.provider)) for row in came.rows] == [
        (case, who) for case in TINY for who in ("attzoo", "copy")
    ]
    assert {row.status for row in came.rows} <= {"timed", "unsteady"}
    assert all(row.seconds.median > 0 for row in came.rows)
    assert came.flags["threads"] == 1
    assert not came.left


def test_a_file_that_is_there_is_refused_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", None)
    (tmp_path / "q.json").write_text("precious")
    with pytest.raises(FileExistsError):
        run.run("quick", "cpu", out=tmp_path / "q.json")


def test_no_case_is_begun_after_the_time_is_over(monkeypatch):
    monkeypatch.setattr(run, "measure", lambda case, bench, others: [replace(timed((1, 1, 1)), case=case)])
    clock = itertools.count(step=50)
    monkeypatch.setattr(run, "monotonic", lambda: next(clock))
    rows, left = run.measured(Suite(TINY * 3, 1.0), Bench("cpu", PACE), lambda it: ())
    assert [row.case for row in rows] == [TINY[0]]
    assert left == (TINY * 3)[1:]


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch):
    def measure(case, bench, others):
        if case == TINY[1]:
            raise KeyboardInterrupt
        return [replace(timed((1, 1, 1)), case=case)]

    monkeypatch.setattr(run, "measure", measure)
    rows, left = run.measured(Suite(TINY, 1.0), Bench("cpu", PACE), lambda it: ())
    assert ([row.case for row in rows], left) == ([TINY[0]], TINY[1:])


def test_a_case_that_breaks_off_costs_the_others_nothing(monkeypatch):
    def measure(case, bench, others):
        if case == TINY[0]:
            raise RuntimeError("the device gave up")
        return [replace(timed((1, 1, 1)), case=case)]

    monkeypatch.setattr(run, "measure", measure)
    rows, left = run.measured(Suite(TINY, 1.0), Bench("cpu", PACE), lambda it: ())
    assert [(row.case, row.status) for row in rows] == [(TINY[0], "failed"), *((case, "timed") for case in TINY[1:])]
    assert rows[0].why == "RuntimeError: the device gave up"
    assert not left


def test_time_left_is_guessed_by_weight():
    eager, keras = TINY[0], replace(TINY[1], forms=frozenset({"eager", "keras"}))
    chosen = Suite((eager, keras), 60.0)
    assert run.minutes_left(chosen, 0, 0.0) == 60.0
    assert run.minutes_left(chosen, 1, 20.0) == 20.0 * (1 + run.WEIGHT["keras"]) / 60
    assert run.minutes_left(replace(chosen, minutes=1.0), 1, 20.0) == 1.0 - 20 / 60


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("slow", "cpu"), "suite must be one of quick, full, kernels, wins, networks, got 'slow'"),
        (("kernels", "cpu"), "suite kernels needs a CUDA device, got cpu"),
        (("quick", "tpu"), "device must be one of cpu, cuda, got 'tpu'"),
        (("quick", "cpu", ("se", "transformer")), "blocks must be of .*, got transformer"),
    ],
)
def test_unknown_names_are_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        run.run(*asked)


def test_the_summary_says_what_is_missing():
    came = replace(made(timed((0.7, 0.75, 0.8))), left=["se 1x2x3"], absent={"timm": "pip"})
    assert run.summary(came).startswith("1 rows; of attzoo's, 1 faster\n1 cases left out")
    assert "not installed: timm" in run.summary(came)


def test_a_command_is_recorded_without_paths_of_the_machine(monkeypatch):
    monkeypatch.setattr(run.sys, "argv", ["benchmarks", "run", "--suite", "quick", "--out", "/home/somebody/a b.json"])
    assert run.command() == "python -m benchmarks run --suite quick --out 'a b.json'"
