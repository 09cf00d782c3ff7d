"""Tests of measuring a case: verification, timing, unsteady measurements, and counts of bytes and operations."""

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import attzoo
from attzoo.contract import Source
from benchmarks import measure, providers, subjects
from benchmarks.cases import Case, create, inputs
from benchmarks.measure import Bench, drift, flops, moved, parameters, references, unsteady
from benchmarks.nets import Bottleneck
from benchmarks.providers import TorchCandidate
from benchmarks.runs import Provider
from benchmarks.timer import Pace

SE_NAMES = {name: name for name in attzoo.get("se", backend="numpy")(32).weights}
CASE = Case("se", ((2, 32, 5, 4),), "training", variant="official")
PACE = {"cpu": Pace(3, 0.0)}
BENCH = Bench("cpu", PACE)
COPY_CHANGED = "the time of copying changed by 5% during the run"


def peer_of(module="attzoo.torch", **arguments):
    """Return a source of SE that is attzoo's SE with these arguments, so that tests need no other library."""
    return Source("own", module, "SE", "official", lambda spec: {"channels": spec.channels, **arguments}, SE_NAMES)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Replace the sources of all blocks: SE has one, "own"; return the sources of SE."""
    sources = {"own": peer_of()}
    monkeypatch.setattr(providers, "sources", lambda name: sources if name == "se" else {})
    return sources


def by_name(rows):
    """Return the rows by provider."""
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
        assert rows[name].traffic >= rows[name].moved
        assert rows[name].parameters == 32 * 2 + 2 + 2 * 32 + 32
    assert rows["attzoo"].reference == rows["own"].reference == "own"
    assert rows["attzoo"].ratio is not None
    assert rows["own"].ratio is None


def test_the_traffic_of_a_training_step_is_that_of_both_passes():
    counts = []
    for mode in ("forward", "backward", "training"):
        subject = subjects.create_subject(replace(CASE, mode=mode), "cpu")
        counts.append(TorchCandidate(Provider("attzoo"), subject, partial(deepcopy, subject.ours)).traffic())
    forward, backward, training = counts
    assert 0 < forward < backward
    assert training == forward + backward


@pytest.mark.parametrize(("form", "network"), [("compiled", None), ("triton", None), ("eager", "resnet50")])
def test_the_traffic_of_other_forms_and_of_networks_is_unknown(form, network):
    subject = subjects.create_subject(CASE, "cpu")
    subject = replace(subject, case=replace(CASE, network=network))
    assert TorchCandidate(Provider("attzoo", form=form), subject, lambda: subject.ours).traffic() is None


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_wrong_blocks_are_not_timed(known, mode):
    known["own"] = peer_of(gate="hard_sigmoid")
    rows = by_name(measure.measure(replace(CASE, mode=mode), BENCH))
    assert rows["own"].verdict == "wrong"
    assert rows["own"].error > 1e-2
    assert rows["own"].seconds is None
    assert "relative error" in rows["own"].why
    assert rows["attzoo"].status in ("timed", "unsteady")


def test_a_block_that_returns_nan_is_wrong(monkeypatch):
    monkeypatch.setattr(providers, "run", lambda *arguments: [torch.full((2, 32, 5, 4), torch.nan)] * 2)
    assert {row.status for row in measure.measure(CASE, BENCH)} == {"wrong"}


def test_a_provider_that_raises_has_failed_with_the_reason(monkeypatch):
    def run(*arguments):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(providers, "run", run)
    rows = measure.measure(CASE, BENCH)
    assert {(row.status, row.why) for row in rows} == {("failed", "RuntimeError: no such kernel")}


def test_a_case_without_expected_results_has_failed(monkeypatch):
    def expected_results(subject):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measure, "expected_results", expected_results)
    (row,) = measure.measure(CASE, BENCH)
    assert (row.status, row.why) == ("failed", "RuntimeError: out of memory")


def test_peers_that_are_not_installed_are_listed(known):
    known["own"] = peer_of(module="no_such_module.inside")
    bench = Bench("cpu", PACE)
    assert list(by_name(measure.measure(CASE, bench))) == ["attzoo", "copy"]
    assert bench.absent == {"no_such_module"}


def test_a_peer_has_no_row_for_inputs_of_another_rank():
    assert list(by_name(measure.measure(replace(CASE, shapes=((2, 32, 9),)), BENCH))) == ["attzoo", "copy"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_every_dtype_and_layout_reaches_the_providers(monkeypatch, dtype, layout):
    tensors = []
    run = providers.run

    def recording_run(module, mode, inputs, cotangent):
        tensors.extend([*inputs, cotangent, *module.parameters()])
        return run(module, mode, inputs, cotangent)

    monkeypatch.setattr(providers, "run", recording_run)
    rows = by_name(measure.measure(replace(CASE, dtype=dtype, layout=layout), BENCH))
    assert {row.status for row in rows.values()} <= {"timed", "unsteady"}
    assert {tensor.dtype for tensor in tensors} == {getattr(torch, dtype)}
    strides = {tensor.stride(1) for tensor in tensors if tensor.ndim == 4}
    assert strides == ({1} if layout == "channels last" else {20})


@pytest.mark.parametrize("block", ["spatial_attention", "cbam", "attention_gate"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_attzoos_block_has_the_expected_results_at_every_rank(block, rank):
    case = Case(block, inputs(block, (2, 8, *(4,) * rank), coarse=block == "attention_gate"), "training")
    subject = subjects.create_subject(case, "cpu")
    candidate = next(providers.torch_candidates(subject))
    assert subjects.relative_error(candidate.outputs(), subjects.expected_results(subject)) < 1e-6


def test_a_float64_block_that_differs_from_the_numpy_reference_raises(monkeypatch):
    monkeypatch.setattr(subjects, "CHECKED", set())
    subject = subjects.create_subject(CASE, "cpu")
    monkeypatch.setattr(type(subject.ours.spec), "__call__", lambda spec, x, weights, training: x)
    with pytest.raises(RuntimeError, match="to equal its NumPy reference"):
        subjects.expected_results(subject)


@pytest.mark.parametrize(
    ("shape", "cropped_shape"), [((3, 1, 30, 30), (2, 1, 30, 30)), ((1, 1, 30, 4, 30), (1, 1, 24, 4, 24))]
)
def test_crop_returns_two_samples_and_a_corner_of_a_volume(shape, cropped_shape):
    assert subjects.crop(torch.zeros(shape)).shape == cropped_shape


@pytest.mark.parametrize(("got", "error"), [([3.0, 4.0], 0.0), ([3.0, 5.0], 0.2), ([3.0, float("nan")], float("nan"))])
def test_relative_error_is_by_norm(got, error):
    expected = [torch.tensor([1.0]), torch.tensor([3.0, 4.0])]
    largest = subjects.relative_error([torch.tensor([1.0]), torch.tensor(got)], expected)
    assert largest == pytest.approx(error, nan_ok=True)


@pytest.mark.parametrize(("x", "changes_sign"), [(1.0, True), (2.0, False)])
def test_slack_is_positive_if_rounding_changes_the_sign_of_a_relu_input(x, changes_sign):
    subject = subjects.create_subject(Case("attention_gate", ((2, 1, 8), (2, 1, 8)), "training"), "cpu")
    arrays_of_ones = {name: array * 0 + 1 for name, array in subject.arrays.items()}
    signs = {"gating.weight": -arrays_of_ones["gating.weight"], "gating.bias": -arrays_of_ones["gating.bias"]}
    attzoo.load_weights(subject.ours, arrays_of_ones | signs)
    subject = replace(subject, sets=[[torch.full((2, 1, 8), x), torch.ones(2, 1, 8)]])   # the relu's input is x - g
    slack = subjects.slack(subject, subjects.expected_results(subject))
    assert slack == pytest.approx(subjects.MAX_SLACK if changes_sign else 0, abs=1e-4)


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_plain_unet_computes_the_same_as_attzoos(mode):
    case = Case("attention_gate", ((1, 3, 16, 16),), mode, network="unet", variant="leejunhyun")
    subject = subjects.create_subject(case, "cpu")
    candidates = {str(candidate.provider): candidate for candidate in providers.torch_candidates(subject)}
    assert list(candidates) == ["attzoo", "plain", *(["attzoo (fused)"] if mode == "inference" else [])]
    expected = subjects.expected_results(subject)
    for candidate in candidates.values():
        assert subjects.relative_error(candidate.outputs(), expected) < subject.tolerance
        assert candidate.module.training == (mode == "training")


def test_resnet50_with_a_peers_blocks_has_the_same_weights():
    subject = subjects.create_subject(Case("se", ((1, 3, 32, 32),), network="resnet50", variant="official"), "cpu")
    ours, peer = providers.torch_candidates(subject)
    assert str(peer.provider) == "own"
    x = subject.sets[0][0]
    torch.testing.assert_close(peer.module(x), ours.module(x))
    blocks = [module for module in peer.module.modules() if type(module).__name__ == "SE"]
    assert len(blocks) == 16
    assert not {id(b) for b in blocks} & {id(b) for b in ours.module.modules()}


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_in_resnet50_attzoos_block_gets_the_shortcut_and_a_peers_does_not(monkeypatch, known, mode):
    class Peer(torch.nn.Module):
        def __init__(self, **arguments):
            super().__init__()
            self.inner = attzoo.create("se", **arguments, backend="torch")

        def forward(self, x):
            return self.inner(x)

    monkeypatch.setattr("attzoo.torch.Peer", Peer, raising=False)
    names = {name: f"inner.{name}" for name in SE_NAMES}
    known["own"] = replace(peer_of(), class_name="Peer", names=names)
    case = Case("se", ((2, 3, 32, 32),), mode, network="resnet50", variant="official")
    subject = subjects.create_subject(case, "cpu")
    expected, ends = subjects.expected_results(subject), {}
    for candidate in providers.torch_candidates(subject):
        assert subjects.relative_error(candidate.outputs(), expected) < subject.tolerance
        parts = candidate.module.modules()
        ends[str(candidate.provider)] = [part.takes_shortcut for part in parts if isinstance(part, Bottleneck)]
    assert ends == {"attzoo": [True] * 16, "own": [False] * 16}


def test_a_training_step_does_not_change_the_weights():
    net = torch.nn.Linear(3, 2)
    weights_before = net.weight.clone()
    step = providers.Step(net, [torch.ones(4, 3)])
    for _ in range(3):
        assert step() > 0
    assert torch.equal(net.weight, weights_before)
    assert net.weight.grad.abs().max() > 0


# ---- times, bytes and operations -------------------------------------------------------------------------------------


def test_an_unsteady_case_is_timed_again(monkeypatch):
    calls = []

    def interleave_unsteadily_once(turns, pace):
        calls.append(pace)
        return {name: [2.0 if name.endswith("again") and len(calls) == 1 else 1.0] * 3 for name in turns}

    monkeypatch.setattr(measure, "interleave", interleave_unsteadily_once)
    rows = by_name(measure.measure(CASE, BENCH))
    assert (len(calls), rows["attzoo"].status, rows["attzoo"].ratio.median) == (2, "timed", 1.0)


def test_a_case_that_stays_unsteady_has_the_reason(monkeypatch):
    def interleave_unsteadily(turns, pace):
        return {name: [2.0 if name.endswith("again") else 1.0] * 3 for name in turns}

    monkeypatch.setattr(measure, "interleave", interleave_unsteadily)
    rows = by_name(measure.measure(CASE, BENCH))
    assert rows["attzoo"].status == rows["own"].status == "unsteady"
    assert rows["attzoo"].why == "a second copy of own took 2.00 times as long"


@pytest.mark.parametrize(
    ("ours", "copy", "why"),
    [
        ([1.0, 1.0, 1.0, 1.01, 1.0, 1.0], [1.0] * 6, {}),
        ([1.0, 1.1, 1.0, 1.1, 1.0, 1.1], [1.0] * 6, {"ours": "its quartiles are more than 5% apart"}),
        ([1.0] * 6, [1.0] * 3 + [1.05] * 3, dict.fromkeys(("ours", "copy"), COPY_CHANGED)),
    ],
)
def test_on_cuda_every_provider_and_the_copy_must_be_steady(ours, copy, why):
    assert unsteady({"ours": ours, "copy": copy}, {}, "graph") == why
    assert unsteady({"ours": ours, "copy": copy}, {}, "calls") == {}   # wider limits: the host runs other programs
    assert unsteady({"ours": ours, "copy": copy}, {}, "cpu") == {}     # no limits: a busy machine changes the quartiles


def test_drift_is_the_change_from_the_first_third_to_the_last():
    assert drift([1.0, 1.0, 5.0, 5.0, 1.1, 1.1]) == pytest.approx(0.1)


@dataclass
class NamedCandidate:
    provider: Provider
    family: str = "torch"


def test_the_reference_is_the_first_peer_of_a_family():
    ours, timm, monai = (NamedCandidate(Provider(name)) for name in ("attzoo", "timm", "MONAI"))
    in_jax = NamedCandidate(Provider("attzoo", "jax", "traced"), "jax traced")
    assert references([ours, timm, monai, in_jax]) == {"torch": timm, "jax traced": in_jax}


def test_bytes_and_operations_are_those_of_the_spec():
    se = Case("se", ((2, 32, 5, 4),))
    x, w = 2 * 32 * 5 * 4, 32 * 2 + 2 + 2 * 32 + 32
    assert moved(se) == moved(replace(se, mode="forward")) == 4 * (2 * x + w)
    assert moved(replace(se, mode="backward")) == 4 * (3 * x + 2 * w)
    assert moved(replace(se, mode="training", dtype="float16")) == 2 * (5 * x + 3 * w)
    assert [flops(replace(se, mode=mode)) for mode in ("inference", "backward", "training")] == [512, 1024, 1536]
    gate = Case("attention_gate", inputs("attention_gate", (1, 8, 4, 4), coarse=True))
    assert moved(gate) == 4 * (8 * 16 + 16 * 4 + 8 * 16 + (8 * 4 + 4 + 16 * 4 + 4 + 4 + 1))
    assert parameters(se) == w
    assert parameters(replace(se, network="resnet50")) == 0
    bam = Case("bam", ((2, 32, 5, 4),))   # running statistics are no parameters
    assert parameters(bam) == sum(p.numel() for p in create(bam, "torch").parameters())
    assert moved(replace(se, network="resnet50")) == flops(replace(se, network="resnet50")) == 0


def keras_candidate(library, outputs, **attributes):
    """Return a candidate on Keras whose calls take a second."""
    candidate = SimpleNamespace(
        provider=Provider(library, "jax", "traced"), family="jax traced", outputs=lambda: outputs,
        turn=lambda clock, cpu: lambda repeats: 1.0, clocks=lambda: ("cpu",), memory=lambda: (None, None),
        traffic=lambda: None,
        twin=lambda: keras_candidate(f"{library} again", outputs, **attributes),
    )   # fmt: skip
    vars(candidate).update(attributes)
    return candidate


def test_memory_is_counted_once_for_all_clocks(monkeypatch):
    calls = []

    def memory():
        calls.append("memory")
        return 3, 5

    subject = subjects.create_subject(CASE, "cpu")
    monkeypatch.setattr(measure, "torch_candidates", lambda subject: ())
    monkeypatch.setattr(measure, "copy_turn", lambda subject, clock: lambda repeats: 1.0)
    outputs = subjects.expected_results(subject)
    two_clocks = keras_candidate("attzoo", outputs, memory=memory, clocks=lambda: ("cpu", "calls"))
    bench = Bench("cpu", {"cpu": Pace(3, 0.0), "calls": Pace(3, 0.0)})
    rows = measure.measure(CASE, bench, lambda subject: [two_clocks])
    ours = [row for row in rows if row.provider.library == "attzoo"]
    assert [(row.clock, row.kept, row.peak) for row in ours] == [("cpu", 3, 5), ("calls", 3, 5)]
    assert calls == ["memory"]


def test_keras_candidates_are_compared_with_the_reference_of_their_family():
    outputs = subjects.expected_results(subjects.create_subject(CASE, "cpu"))
    candidates = [keras_candidate("attzoo", outputs), keras_candidate("plain", outputs)]
    rows = by_name(measure.measure(CASE, BENCH, lambda subject: candidates))
    assert rows["attzoo jax (traced)"].reference == "plain jax (traced)"
    assert rows["attzoo jax (traced)"].ratio.median == rows["attzoo jax (traced)"].control.median == 1.0
    assert rows["attzoo"].reference == "own"
