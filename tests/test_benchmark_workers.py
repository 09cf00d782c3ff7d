"""Keras's backends in processes of their own: they compute what the spec says, and nothing that they do hangs a run."""

import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import attzoo
from attzoo.adapters import adapter
from attzoo.testing.case import Case
from benchmarks import cases, keras_blocks, workers
from benchmarks import worker as child
from benchmarks.cases import BOTH
from benchmarks.keras_contenders import keras_contenders
from benchmarks.subjects import subject
from benchmarks.timer import KEPT
from benchmarks.workers import FORMS, Failed, Job, Worker, available, environment

HERE = Path(__file__).parent
COARSE = ((2, 4, 6, 4), (2, 3, 3, 2))
CASES = {
    "se": Case("se", 8, {"reduction": 2}, ((2, 8, 5, 3),), "float32"),
    "eca": Case("eca", 8, {"kernel_size": 3}, ((2, 8, 5, 3),), "float32"),
    "cbam": Case("cbam", 8, {"reduction": 2, "norm": True}, ((2, 8, 5, 3),), "float32"),
    "gate": Case("attention_gate", 4, {"gating_channels": 3, "norm": True}, COARSE, "float32"),
    "grid gate": Case(
        "attention_gate", 4, {"gating_channels": 3, "stride": 2, "output_transform": True}, COARSE, "float32"
    ),
}


def job(case, **others):
    config = case.spec.config()
    narrow = [array.astype("float32") for array in (*case.inputs(), case.cotangent())]
    arrays = {name: array.astype("float32") for name, array in case.weights().items()}
    return Job(**{"library": "attzoo", "block": case.name, "config": config, "arrays": arrays,
                  "inputs": narrow[:-1], "cotangent": narrow[-1]} | others)   # fmt: skip


def meaning(case, mode):
    """The spec's output, and the gradients of torch's body, which other tests hold to the spec; in float64."""
    block = adapter("torch").make(attzoo.get(case.name, backend="torch"), case.spec.config(), "float64")
    attzoo.load_weights(block, case.weights())
    run = adapter("torch").run(block, case.inputs(), case.cotangent(), mode == "training")
    y = case.spec(*case.inputs(), weights=case.weights(), training=mode == "training")
    return replace(run, output=y)


def close(got, wanted):
    assert got.dtype == np.float64
    return got.shape == wanted.shape and np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def keras():
    """Processes by backend, each started when it is first asked for."""
    made = {backend: Worker(backend) for backend in FORMS}
    yield made
    for worker in made.values():
        worker.close()


PASSES = [   # each of them compiles something
    *itertools.product(["tensorflow"], CASES, child.LIBRARIES, ["training"], ["traced"]),
    *itertools.product(["tensorflow"], ["gate"], child.LIBRARIES, ["inference"], FORMS["tensorflow"]),
    *itertools.product(["tensorflow"], ["gate"], ["attzoo"], ["training"], ["eager", "jit"]),
    *itertools.product(["jax", "torch"], ["eca"], child.LIBRARIES, BOTH, ["eager"]),
    *itertools.product(["jax"], ["gate"], ["attzoo"], BOTH, ["traced"]),
]


@pytest.mark.parametrize(("backend", "name", "library", "mode", "form"), PASSES)
def test_what_is_timed_is_what_the_spec_says(keras, backend, name, library, mode, form):
    worker, case = keras[backend], CASES[name]
    layout = "channels first" if library == "attzoo" and mode == "training" else "channels last"
    run = worker.prepare("it", job(case, library=library, mode=mode, form=form, layout=layout))
    wanted = meaning(case, mode)
    assert close(run.output, wanted.output)
    assert len(run.input_gradients) == (len(case.shapes) if mode == "training" else 0)
    assert all(map(close, run.input_gradients, wanted.input_gradients))
    assert set(run.weight_gradients) == (set(wanted.weight_gradients) if mode == "training" else set())
    for key, gradient in run.weight_gradients.items():   # of a bias before a batch norm it is 0
        assert gradient.shape == wanted.weight_gradients[key].shape
        assert np.abs(gradient - wanted.weight_gradients[key]).max() < 1e-4
    assert worker.time("it", 2) > 0


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_what_is_forgotten_is_gone(keras, backend):
    keras[backend].prepare("it", job(CASES["se"], form="eager"))
    keras[backend].forget()
    with pytest.raises(Failed, match="KeyError: 'it'"):
        keras[backend].time("it", 1)


def test_what_is_wrong_comes_back_as_it_is(keras):
    worker = keras["tensorflow"]
    case, other = CASES["se"], Case("se", 8, {"reduction": 2, "gate": "hard_sigmoid"}, ((2, 8, 5, 3),), "float32")
    run = worker.prepare("wrong", job(case, config=other.spec.config(), form="eager"))
    assert not close(run.output, meaning(case, "inference").output)
    assert close(run.output, meaning(other, "inference").output)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"form": "compiled"}, "ValueError: form must be one of 'eager'"),
        ({"mode": "forward"}, "ValueError: mode must be one of"),
        ({"config": {"channels": 7}}, "ValueError: .*7"),
        ({"inputs": [np.zeros((2, 3, 5, 4), "float32")]}, r"(?s)ValueError: .*expected \(N, \*S, 8\)"),
    ],
)
def test_what_raises_says_why_and_the_process_stays(keras, others, why):
    worker = keras["tensorflow"]
    worker.start()
    before = worker.process.pid
    with pytest.raises(Failed, match=why):
        worker.prepare("x", job(CASES["se"], **{"form": "eager"} | others))
    worker.prepare("x", job(CASES["se"], form="eager"))
    assert worker.process.pid == before


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(Failed, match="expected a CUDA device"), Worker("jax", "cuda") as worker:
        worker.prepare("x", job(CASES["se"]))


@pytest.mark.parametrize(("has", "libraries"), [(True, {"attzoo", "plain"}), (False, {"attzoo"})])
def test_a_block_that_is_not_written_in_plain_keras_is_timed_without(monkeypatch, has, libraries):
    monkeypatch.setattr(keras_blocks, "has", lambda block: has)
    it = subject(cases.Case("se", ((2, 8, 5, 3),), forms=cases.EVERY), "cpu")
    with keras_contenders("cpu", set()) as contenders:
        assert {contender.provider.library for contender in contenders(it)} == libraries


def test_plain_blocks_are_found_by_the_blocks_names():
    files = {file.stem for file in Path(keras_blocks.__file__).parent.glob("[!_]*.py")}
    assert {"se", "attention_gate"} <= files <= set(attzoo.names())
    assert all(map(keras_blocks.has, files))
    assert not keras_blocks.has("none")


# ---- processes, without a framework ----------------------------------------------------------------------------------

STAND_IN = """
import os, sys, time
from benchmarks.worker import Connection, serve

class Bench:
    def flags(self):
        return {"pid": str(os.getpid())}
    def prepare(self, key, job):
        return key
    def time(self, key, repeats):
        if key == "dies":
            print("out of everything", file=sys.stderr)
            os._exit(3)
        if key == "hangs":
            time.sleep(60)
        return 0.5
    def forget(self):
        pass

serve(Connection(int(sys.argv[3])), Bench)
"""


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(workers, "CHILD", ("-c", STAND_IN))
    with Worker("torch", limit=2) as worker:
        yield worker


def alive(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_closing_ends_the_process(stand_in):
    pid = stand_in.process.pid
    assert alive(pid)
    stand_in.close()
    assert not alive(pid)
    stand_in.close()


@pytest.mark.parametrize(
    ("key", "why"), [("dies", "torch ended with 3: out of everything"), ("hangs", "torch took more than 2 s")]
)
def test_a_process_that_dies_or_hangs_is_told_and_replaced(stand_in, key, why):
    pid = stand_in.process.pid
    with pytest.raises(Failed, match=why):
        stand_in.time(key, 1)
    assert not alive(pid)
    with pytest.raises(Failed, match="expected a process with fine, got none: Keras on torch has ended"):
        stand_in.time("fine", 1)
    stand_in.forget()
    assert stand_in.prepare("fine", None) == "fine"
    assert stand_in.time("fine", 1) == 0.5


def test_a_process_that_is_killed_is_told(stand_in):
    os.kill(stand_in.process.pid, signal.SIGKILL)
    with pytest.raises(Failed, match="torch was ended by SIGKILL"):
        stand_in.time("fine", 1)


def test_what_interrupts_a_question_ends_the_process(stand_in, monkeypatch):
    pid = stand_in.process.pid
    stand_in.limit = 30
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            stand_in.time("hangs", 1)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert not alive(pid)


def test_nobody_is_left_when_the_asking_process_is_killed():
    code = (
        f"from benchmarks import workers\nworkers.CHILD = ('-c', {STAND_IN!r})\nimport time\n"
        "worker = workers.Worker('torch'); worker.start(); print(worker.process.pid, flush=True); time.sleep(60)"
    )
    asking = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    pid = int(asking.stdout.readline())
    asking.kill()
    asking.wait()
    asking.stdout.close()
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def test_available_looks_without_importing():
    code = (
        "import sys; from benchmarks.workers import available; print(available());"
        "assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, check=True, capture_output=True)
    assert available() == dict.fromkeys(workers.BACKENDS)


def test_available_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(workers, "find_spec", lambda name: None if name in ("jax", "keras") else name)
    lost = "not installed: keras"
    assert available() == {"tensorflow": lost, "jax": f"{lost}, jax", "torch": lost}


def test_one_thread_on_a_cpu_only():
    cpu, cuda = environment("jax", "cpu"), environment("jax", "cuda")
    assert cpu["NPROC"] == cpu["OMP_NUM_THREADS"] == "1"
    assert cpu["JAX_PLATFORMS"] == "cpu"
    assert "NPROC" not in cuda
    assert cpu["KERAS_BACKEND"] == cuda["KERAS_BACKEND"] == "jax"


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def test_seconds_per_call_end_when_all_is_computed():
    now, done = [0.0], []

    def call():
        now[0] += 1.0
        return len(done)

    def wait(results):
        done.append(len(results))
        now[0] += 6.0   # what was only promised by the calls

    assert child.seconds(call, KEPT + 4, lambda: now[0], wait) == 1.0 + 6.0 / (KEPT + 4)
    assert done == [KEPT]   # the last results, kept alive
