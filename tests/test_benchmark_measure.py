"""What is wrong is not timed, what is unsteady is timed again, and what is counted is what the spec counts."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

import attzoo
from attzoo.contract import Source
from benchmarks import measure, providers, subjects
from benchmarks.cases import Case, inputs
from benchmarks.measure import Bench, drift, flops, moved, references, unsteady
from benchmarks.nets import Bottleneck
from benchmarks.runs import Provider
from benchmarks.timer import Pace

SE_NAMES = {name: name for name in attzoo.get("se", backend="numpy")(32).weights}
CASE = Case("se", ((2, 32, 5, 4),), "training", variant="official")
PACE = {"cpu": Pace(3, 0.0)}
BENCH = Bench("cpu", PACE)


def peer_of(module="attzoo.torch", **others):
    """Our own SE as its own peer, for a test that needs no other library."""
    return Source("own", module, "SE", "official", lambda spec: {"channels": spec.channels, **others}, SE_NAMES)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The sources of SE, and of no other block."""
    known = {"own": peer_of()}
    monkeypatch.setattr(providers, "sources", lambda name: known if name == "se" else {})
    return known


def by_name(rows):
    return {str(row.provider): row for row in rows}


@pytest.mark.parametrize("mode", ["inference", "forward", "backward", "training"])
def test_equal_blocks_are_timed(mode):
    rows = by_name(measure.measure(replace(CASE, mode=mode), BENCH))
    assert list(rows) == ["attzoo", "own", "copy"]
    for name in ("attzoo", "own"):
        assert rows[name].error < 1e-6
        assert rows[name].seconds.median >= rows[name].least > 0
        assert rows[name].copies.median > 0
        assert rows[name].control is not None
        assert (rows[name].kept is None) == (mode != "training")
    assert rows["attzoo"].reference == rows["own"].reference == "own"
    assert rows["attzoo"].ratio is not None
    assert rows["own"].ratio is None


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_wrong_blocks_are_not_timed(known, mode):
    known["own"] = peer_of(gate="hard_sigmoid")
    rows = by_name(measure.measure(replace(CASE, mode=mode), BENCH))
    assert rows["own"].verdict == "wrong"
    assert rows["own"].error > 1e-2
    assert rows["own"].seconds is None
    assert "off" in rows["own"].why
    assert rows["attzoo"].status in ("timed", "unsteady")


def test_a_block_that_gives_nan_is_wrong(monkeypatch):
    monkeypatch.setattr(providers, "run", lambda *asked: [torch.full((2, 32, 5, 4), torch.nan)] * 2)
    assert {row.status for row in measure.measure(CASE, BENCH)} == {"wrong"}


def test_what_raises_has_failed_and_says_why(monkeypatch):
    def run(*asked):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(providers, "run", run)
    rows = measure.measure(CASE, BENCH)
    assert {(row.status, row.why) for row in rows} == {("failed", "RuntimeError: no such kernel")}


def test_a_case_that_cannot_be_made_has_failed(monkeypatch):
    def wanted(it):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measure, "expected_results", wanted)
    (row,) = measure.measure(CASE, BENCH)
    assert (row.status, row.why) == ("failed", "RuntimeError: out of memory")


def test_absent_peers_are_named(known):
    known["own"] = peer_of(module="no_such_module.inside")
    bench = Bench("cpu", PACE)
    assert list(by_name(measure.measure(CASE, bench))) == ["attzoo", "copy"]
    assert bench.absent == {"no_such_module"}


def test_a_peer_is_not_asked_for_a_rank_that_it_does_not_take():
    assert list(by_name(measure.measure(replace(CASE, shapes=((2, 32, 9),)), BENCH))) == ["attzoo", "copy"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_every_dtype_and_layout_reaches_the_providers(monkeypatch, dtype, layout):
    seen = []
    real = providers.run

    def run(module, mode, given, cotangent):
        seen.extend([*given, cotangent, *module.parameters()])
        return real(module, mode, given, cotangent)

    monkeypatch.setattr(providers, "run", run)
    rows = by_name(measure.measure(replace(CASE, dtype=dtype, layout=layout), BENCH))
    assert {row.status for row in rows.values()} <= {"timed", "unsteady"}
    assert {tensor.dtype for tensor in seen} == {getattr(torch, dtype)}
    strides = {tensor.stride(1) for tensor in seen if tensor.ndim == 4}
    assert strides == ({1} if layout == "channels last" else {20})


@pytest.mark.parametrize("block", ["spatial_attention", "cbam", "attention_gate"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_blocks_of_every_rank_are_made_and_meant(block, rank):
    case = Case(block, inputs(block, (2, 8, *(4,) * rank), coarse=block == "attention_gate"), "training")
    it = subjects.subject(case, "cpu")
    contender = next(providers.contenders(it))
    assert subjects.relative_error(contender.outputs(), subjects.expected_results(it)) < 1e-6


def test_a_float64_body_that_is_not_its_meaning_is_noticed(monkeypatch):
    monkeypatch.setattr(subjects, "CHECKED", set())
    it = subjects.subject(CASE, "cpu")
    monkeypatch.setattr(type(it.ours.spec), "__call__", lambda spec, x, weights, training: x)
    with pytest.raises(RuntimeError, match="to equal its NumPy reference"):
        subjects.expected_results(it)


@pytest.mark.parametrize(("shape", "few"), [((3, 1, 30, 30), (2, 1, 30, 30)), ((1, 1, 30, 4, 30), (1, 1, 24, 4, 24))])
def test_of_a_volume_a_corner_is_held_to_the_meaning(shape, few):
    assert subjects.crop(torch.zeros(shape)).shape == few


@pytest.mark.parametrize(("got", "off"), [([3.0, 4.0], 0.0), ([3.0, 5.0], 0.2), ([3.0, float("nan")], float("nan"))])
def test_deviation_is_a_part_of_the_norm(got, off):
    expected = [torch.tensor([1.0]), torch.tensor([3.0, 4.0])]
    error = subjects.relative_error([torch.tensor([1.0]), torch.tensor(got)], expected)
    assert error == pytest.approx(off, nan_ok=True)


@pytest.mark.parametrize(("x", "moves"), [(1.0, True), (2.0, False)])
def test_a_relu_that_rounding_turns_may_be_off_by_as_much(x, moves):
    it = subjects.subject(Case("attention_gate", ((2, 1, 8), (2, 1, 8)), "training"), "cpu")
    ours = {name: array * 0 + 1 for name, array in it.arrays.items()}
    attzoo.load_weights(it.ours, ours | {"gating.weight": -ours["gating.weight"], "gating.bias": -ours["gating.bias"]})
    it = replace(it, sets=[[torch.full((2, 1, 8), x), torch.ones(2, 1, 8)]])   # to a relu goes x - g
    slack = subjects.slack(it, subjects.expected_results(it))
    assert slack == pytest.approx(subjects.MAX_SLACK if moves else 0, abs=1e-4)


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_plain_unet_is_ours(mode):
    case = Case("attention_gate", ((1, 3, 16, 16),), mode, network="unet", variant="leejunhyun")
    it = subjects.subject(case, "cpu")
    racers = {str(racer.provider): racer for racer in providers.contenders(it)}
    assert list(racers) == ["attzoo", "plain", *(["attzoo (fused)"] if mode == "inference" else [])]
    expected = subjects.expected_results(it)
    for racer in racers.values():
        assert subjects.relative_error(racer.outputs(), expected) < it.tolerance
        assert racer.module.training == (mode == "training")


def test_resnet50_gets_the_peers_blocks_with_the_same_arrays():
    it = subjects.subject(Case("se", ((1, 3, 32, 32),), network="resnet50", variant="official"), "cpu")
    ours, theirs = providers.contenders(it)
    assert str(theirs.provider) == "own"
    x = it.sets[0][0]
    torch.testing.assert_close(theirs.module(x), ours.module(x))
    blocks = [part for part in theirs.module.modules() if type(part).__name__ == "SE"]
    assert len(blocks) == 16
    assert not {id(b) for b in blocks} & {id(b) for b in ours.module.modules()}


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_in_resnet50_ours_end_the_branch_and_a_peer_never_hears_of_it(monkeypatch, known, mode):
    class Theirs(torch.nn.Module):
        def __init__(self, **arguments):
            super().__init__()
            self.inner = attzoo.create("se", **arguments, backend="torch")

        def forward(self, x):
            return self.inner(x)

    monkeypatch.setattr("attzoo.torch.Theirs", Theirs, raising=False)
    names = {name: f"inner.{name}" for name in SE_NAMES}
    known["own"] = replace(peer_of(), class_name="Theirs", names=names)
    it = subjects.subject(Case("se", ((2, 3, 32, 32),), mode, network="resnet50", variant="official"), "cpu")
    expected, found = subjects.expected_results(it), {}
    for racer in providers.contenders(it):
        assert subjects.relative_error(racer.outputs(), expected) < it.tolerance
        found[str(racer.provider)] = [part.ends for part in racer.module.modules() if isinstance(part, Bottleneck)]
    assert found == {"attzoo": [True] * 16, "own": [False] * 16}


def test_a_training_step_leaves_the_network_as_it_was():
    net = torch.nn.Linear(3, 2)
    before = net.weight.clone()
    step = providers.Step(net, [torch.ones(4, 3)])
    for _ in range(3):
        assert step() > 0
    assert torch.equal(net.weight, before)
    assert net.weight.grad.abs().max() > 0


# ---- the rows' arithmetic --------------------------------------------------------------------------------------------


def test_an_unsteady_case_is_timed_again(monkeypatch):
    tries = []

    def unsteady_once(turns, pace):
        tries.append(pace)
        return {name: [2.0 if name.endswith("again") and len(tries) == 1 else 1.0] * 3 for name in turns}

    monkeypatch.setattr(measure, "interleave", unsteady_once)
    rows = by_name(measure.measure(CASE, BENCH))
    assert (len(tries), rows["attzoo"].status, rows["attzoo"].ratio.median) == (2, "timed", 1.0)


def test_a_case_that_stays_unsteady_says_so(monkeypatch):
    def never(turns, pace):
        return {name: [2.0 if name.endswith("again") else 1.0] * 3 for name in turns}

    monkeypatch.setattr(measure, "interleave", never)
    rows = by_name(measure.measure(CASE, BENCH))
    assert rows["attzoo"].status == rows["own"].status == "unsteady"
    assert rows["attzoo"].why == "own beside itself took 2.00 of its time"


@pytest.mark.parametrize(
    ("ours", "copy", "why"),
    [
        ([1.0, 1.0, 1.0, 1.01, 1.0, 1.0], [1.0] * 6, {}),
        ([1.0, 1.1, 1.0, 1.1, 1.0, 1.1], [1.0] * 6, {"ours": "its quartiles are more than 5% apart"}),
        ([1.0] * 6, [1.0] * 3 + [1.05] * 3, dict.fromkeys(("ours", "copy"), "copying changed by 5% meanwhile")),
    ],
)
def test_on_cuda_every_provider_and_the_copy_must_be_steady(ours, copy, why):
    assert unsteady({"ours": ours, "copy": copy}, {}, "graph") == why
    assert unsteady({"ours": ours, "copy": copy}, {}, "calls") == {}   # from a host that does other things, too
    assert unsteady({"ours": ours, "copy": copy}, {}, "cpu") == {}   # whose quartiles a busy machine moves


def test_drift_is_from_the_first_third_to_the_last():
    assert drift([1.0, 1.0, 5.0, 5.0, 1.1, 1.1]) == pytest.approx(0.1)


@dataclass
class Named:
    provider: Provider
    family: str = "torch"


def test_the_reference_is_the_first_peer_of_a_family():
    ours, timm, monai = (Named(Provider(name)) for name in ("attzoo", "timm", "MONAI"))
    keras = Named(Provider("attzoo", "jax", "traced"), "jax traced")
    assert references([ours, timm, monai, keras]) == {"torch": timm, "jax traced": keras}


def test_bytes_and_operations_are_the_specs():
    se = Case("se", ((2, 32, 5, 4),))
    x, w = 2 * 32 * 5 * 4, 32 * 2 + 2 + 2 * 32 + 32
    assert moved(se) == moved(replace(se, mode="forward")) == 4 * (2 * x + w)
    assert moved(replace(se, mode="backward")) == 4 * (3 * x + 2 * w)
    assert moved(replace(se, mode="training", dtype="float16")) == 2 * (5 * x + 3 * w)
    assert [flops(replace(se, mode=mode)) for mode in ("inference", "backward", "training")] == [512, 1024, 1536]
    gate = Case("attention_gate", inputs("attention_gate", (1, 8, 4, 4), coarse=True))
    assert moved(gate) == 4 * (8 * 16 + 16 * 4 + 8 * 16 + (8 * 4 + 4 + 16 * 4 + 4 + 4 + 1))
    assert moved(replace(se, network="resnet50")) == flops(replace(se, network="resnet50")) == 0


def racer(library, outputs, **others):
    """Somebody on Keras whose calls take a second."""
    it = SimpleNamespace(
        provider=Provider(library, "jax", "traced"), family="jax traced", outputs=lambda: outputs,
        turn=lambda clock, cpu: lambda repeats: 1.0, clocks=lambda: ("cpu",), memory=lambda: (None, None),
        twin=lambda: racer(f"{library} again", outputs, **others),
    )   # fmt: skip
    vars(it).update(others)
    return it


def test_memory_is_counted_once_for_all_clocks(monkeypatch):
    counted = []

    def memory():
        counted.append("once")
        return 3, 5

    it = subjects.subject(CASE, "cpu")
    monkeypatch.setattr(measure, "contenders", lambda it: ())
    monkeypatch.setattr(measure, "copy_turn", lambda it, clock: lambda repeats: 1.0)
    two = racer("attzoo", subjects.expected_results(it), memory=memory, clocks=lambda: ("cpu", "calls"))
    rows = measure.measure(CASE, Bench("cpu", {"cpu": Pace(3, 0.0), "calls": Pace(3, 0.0)}), lambda it: [two])
    ours = [row for row in rows if row.provider.library == "attzoo"]
    assert [(row.clock, row.kept, row.peak) for row in ours] == [("cpu", 3, 5), ("calls", 3, 5)]
    assert counted == ["once"]


def test_other_contenders_are_timed_beside_their_own_reference():
    wanted = subjects.expected_results(subjects.subject(CASE, "cpu"))
    rows = by_name(measure.measure(CASE, BENCH, lambda it: [racer("attzoo", wanted), racer("plain", wanted)]))
    assert rows["attzoo jax (traced)"].reference == "plain jax (traced)"
    assert rows["attzoo jax (traced)"].ratio.median == rows["attzoo jax (traced)"].control.median == 1.0
    assert rows["attzoo"].reference == "own"
