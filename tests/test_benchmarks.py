"""The arithmetic of the benchmarks, and that they time nothing that is wrong. No test here asserts a time."""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch

import attzoo
from benchmarks import cpu, memory, results, unet
from benchmarks.peers import Peer
from benchmarks.results import Row
from benchmarks.timer import KEPT, Spread, interleave, paired, spread

SE_NAMES = {name: name for name in attzoo.get("se", backend="numpy")(32).weights}


def peer_of(name="SE", module="attzoo.torch", **others):
    """Our own SE as its own peer, for a test that needs no other library."""
    return Peer("attzoo", module, name, "se", "official", lambda spec: {"channels": spec.channels, **others}, SE_NAMES)


def timed(ratio, control=(0.98, 1.0, 1.02)):
    spreads = {"ratio": Spread(*ratio), "control": Spread(*control)}
    return Row("se", "timm SEModule", ((8, 64, 56, 56),), "training", "timed", (1e-7, 2e-7), 0.004, 0.005, **spreads)


def test_spread_is_the_quartiles():
    assert spread([5, 1, 4, 2, 3]) == Spread(2, 3, 4)


def test_ratios_are_paired_within_a_round():
    peer = [1.0, 10.0, 100.0, 1000.0, 2.0]   # on a machine that slows down and recovers
    times = {"peer": peer, "ours": [0.5 * t for t in peer], "again": [1.1, 9.0, 100.0, 1010.0, 2.0]}
    assert paired(times, "ours", "peer") == Spread(0.5, 0.5, 0.5)
    assert paired(times, "again", "peer") == Spread(1.0, 1.0, 1.01)
    with pytest.raises(ValueError, match="longer"):
        paired(times | {"ours": [1.0]}, "ours", "peer")


def test_rounds_are_interleaved_and_reversed():
    called, now = [], itertools.count()
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    times = interleave(calls, rounds=3, seconds=0, clock=lambda: float(next(now)))
    assert "".join(called) == "aabbcc" + "abc" + "cba" + "abc"   # first each twice: warm up, and count repeats
    assert times == {name: [1.0] * 3 for name in "abc"}


def test_a_turn_is_as_long_as_asked_and_equally_often_for_all():
    clock, calls = [0.0], {"slow": 4.0, "fast": 1.0}
    counts = dict.fromkeys(calls, 0)

    def call(name):
        counts[name] += 1
        clock[0] += calls[name]

    times = interleave({n: lambda n=n: call(n) for n in calls}, rounds=2, seconds=13.0, clock=lambda: clock[0])
    assert counts == {"slow": 2 + 2 * 3, "fast": 2 + 2 * 3}   # 13 s hold three calls of 4 s
    assert times == {"slow": [4.0, 4.0], "fast": [1.0, 1.0]}


def test_the_last_results_are_kept_alive():
    made, alive = [], []

    def call():
        alive.append(sum(result() is not None for result in made))
        result = Spread(1, 2, 3)
        made.append(weakref.ref(result))
        return result

    interleave({"only": call}, rounds=KEPT + 3, seconds=0)
    assert alive == [0, 0, *range(KEPT), KEPT, KEPT, KEPT]   # two to warm up, then the rounds


@pytest.mark.parametrize(
    ("ratio", "control", "verdict"),
    [
        ((1.03, 1.05, 1.08), (0.98, 1.0, 1.02), "slower"),
        ((1.01, 1.05, 1.08), (0.98, 1.0, 1.02), "same"),
        ((0.92, 0.95, 0.97), (0.98, 1.0, 1.02), "faster"),
        ((0.92, 0.95, 0.99), (0.98, 1.0, 1.02), "same"),
        ((1.01, 1.02, 1.03), (0.91, 0.92, 0.94), "slower"),
        ((0.98, 0.99, 0.995), (0.91, 0.92, 0.94), "same"),
        ((0.5, 0.5, 0.5), (0.8, 0.89, 1.0), "unsteady"),
        ((2.0, 2.0, 2.0), (1.0, 1.11, 1.2), "unsteady"),
    ],
)
def test_verdict_is_by_the_control(ratio, control, verdict):
    assert timed(ratio, control).verdict == verdict


def test_what_was_not_timed_is_named():
    assert replace(timed((1, 1, 1)), status="absent", ratio=None, control=None).verdict == "absent"


def test_report_comes_back_as_it_went(tmp_path):
    rows = [timed((0.7, 0.75, 0.8)), replace(timed((1, 1, 1)), status="wrong", ratio=None, control=None)]
    report = {"title": "T", "method": "M", "command": "c", "date": "d", **results.facts(("numpy", "no-such-package"))}
    results.write(tmp_path / "new" / "r.json", report, rows)
    again = results.read(tmp_path / "new" / "r.json")
    assert results.rows_of(again) == rows
    assert [row["verdict"] for row in again["rows"]] == ["faster", "wrong"]
    lines = (tmp_path / "new" / "r.md").read_text().splitlines()
    assert lines == results.table(again).splitlines()
    assert "- not installed: no-such-package" in lines
    assert "| 0.75 (0.70-0.80) | 1.00 (0.98-1.02) |" in lines[-2]
    assert lines[-1].endswith("| wrong |")
    assert {line.count("|") for line in lines[-4:]} == {12}


def test_report_of_another_schema_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema 1, got 0"):
        results.read(tmp_path / "r.json")


@pytest.mark.parametrize("mode", cpu.MODES)
def test_equal_blocks_are_timed(monkeypatch, mode):
    monkeypatch.setitem(cpu.PEERS, "own", peer_of())
    row = cpu.measure("own", (2, 32, 5, 4), mode, rounds=3)
    assert row.status == "timed"
    assert max(row.error) < 1e-6
    assert row.ours > 0
    assert row.theirs > 0
    assert row.verdict in ("same", "faster", "slower", "unsteady")
    assert (row.saved is None) == (mode == "inference")


@pytest.mark.parametrize("mode", cpu.MODES)
def test_wrong_blocks_are_not_timed(monkeypatch, mode):
    monkeypatch.setitem(cpu.PEERS, "own", peer_of(gate="hard_sigmoid"))
    monkeypatch.setattr(cpu, "interleave", None)
    row = cpu.measure("own", (2, 32, 5, 4), mode, rounds=3)
    assert row.status == row.verdict == "wrong"
    assert row.error[0] < 1e-6 < row.error[1]


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(cpu.PEERS, "own", peer_of(module="no_such_module"))
    assert cpu.measure("own", (2, 32, 5, 4), "training", rounds=3).status == "absent"


def test_unsteady_rows_are_timed_again(monkeypatch):
    tries = []

    def unsteady_once(calls, rounds, seconds):
        tries.append(rounds)
        return {"ours": [1.0] * 3, "peer": [1.0] * 3, "again": [2.0 if len(tries) == 1 else 1.0] * 3}

    monkeypatch.setitem(cpu.PEERS, "own", peer_of())
    monkeypatch.setattr(cpu, "interleave", unsteady_once)
    assert cpu.measure("own", (2, 32, 5, 4), "inference", rounds=3).control == Spread(1.0, 1.0, 1.0)
    assert len(tries) == 2


def test_kept_counts_each_thing_that_autograd_holds_once_and_no_input():
    class Product(torch.nn.Module):
        def forward(self, x):
            return x * x.exp()   # holds x, an input, and twice exp's result, 10 numbers of 4 bytes

    assert cpu.kept(Product(), [torch.ones(10)]) == 40


def test_quick_run_writes_both_files(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu, "keep_pages", lambda: None)   # of this process, which has other work
    monkeypatch.setattr(cpu, "SHAPES", {"own": ((2, 32, 5, 4),)})
    monkeypatch.setitem(cpu.PEERS, "own", peer_of())
    threads = torch.get_num_threads()
    try:
        assert cpu.main(["--quick", "--out", str(tmp_path / "q.json")]) == 0
        assert cpu.main(["--report", str(tmp_path / "q.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.endswith((tmp_path / "q.md").read_text())
    assert results.read(tmp_path / "q.json")["command"].startswith("python -m benchmarks.cpu --quick")


# ---- the U-Net -------------------------------------------------------------------------------------------------------


def test_peak_is_what_is_alive_at_once():
    def call():
        a = torch.zeros(100)
        b = a + 1
        del a
        return b * 2 + 3   # b, b * 2 and the sum

    assert memory.peak(call) == 1200


@pytest.fixture(scope="module")
def measured():
    return unet.measure(*unet.QUICK, rounds=2)


def test_the_plain_unet_is_ours_and_both_are_timed(measured):
    assert [row.mode for row in measured] == ["inference", "inference, fused", "training"]
    for row in measured:
        assert row.status == "timed"
        assert max(row.error) < unet.TOLERANCE[row.mode]
    saved, peak = measured[-1].saved, measured[-1].peak
    assert saved[0] < saved[1]   # what is repeated on the way up is not kept
    assert peak[0] > saved[0]


def test_a_unet_that_computes_something_else_is_not_timed(monkeypatch):
    real = unet.canonical

    def other(plain):
        arrays = real(plain)
        return arrays | {"head.bias": arrays["head.bias"] + 1}

    monkeypatch.setattr(unet, "canonical", other)
    rows = unet.measure(*unet.QUICK, rounds=2)
    assert {row.verdict for row in rows} == {"wrong"}
    assert {row.ours for row in rows} == {None}
