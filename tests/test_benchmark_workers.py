"""Tests of the Keras processes: results equal the spec's, and a process that fails or hangs does not stop a run."""

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
from benchmarks.keras_candidates import open_keras_candidates
from benchmarks.subjects import create_subject
from benchmarks.timer import KEPT_RESULTS
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


def job(case, **fields):
    """Return the job of a case, with some fields changed."""
    config = case.spec.config()
    *inputs, cotangent = (array.astype("float32") for array in (*case.inputs(), case.cotangent()))
    arrays = {name: array.astype("float32") for name, array in case.weights().items()}
    return Job(**{"library": "attzoo", "block": case.name, "config": config, "arrays": arrays,
                  "inputs": inputs, "cotangent": cotangent} | fields)   # fmt: skip


def expected_run(case, mode):
    """Return the spec's output and the torch block's gradients in float64; other tests compare these with the spec."""
    block = adapter("torch").make(attzoo.get(case.name, backend="torch"), case.spec.config(), "float64")
    attzoo.load_weights(block, case.weights())
    run = adapter("torch").run(block, case.inputs(), case.cotangent(), mode == "training")
    y = case.spec(*case.inputs(), weights=case.weights(), training=mode == "training")
    return replace(run, output=y)


def is_close(actual, expected):
    """Whether a float64 array differs from the expected one by at most 1e-5 times its largest magnitude."""
    assert actual.dtype == np.float64
    return actual.shape == expected.shape and np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def keras_workers():
    """Provide workers by backend. A process starts at its first job."""
    workers = {backend: Worker(backend) for backend in FORMS}
    yield workers
    for worker in workers.values():
        worker.close()


PASSES = [   # few, because each compiles code
    *itertools.product(["tensorflow"], CASES, child.LIBRARIES, ["training"], ["traced"]),
    *itertools.product(["tensorflow"], ["gate"], child.LIBRARIES, ["inference"], FORMS["tensorflow"]),
    *itertools.product(["tensorflow"], ["gate"], ["attzoo"], ["training"], ["eager", "jit"]),
    *itertools.product(["jax", "torch"], ["eca"], child.LIBRARIES, BOTH, ["eager"]),
    *itertools.product(["jax"], ["gate"], ["attzoo"], BOTH, ["traced"]),
]


@pytest.mark.parametrize(("backend", "name", "library", "mode", "form"), PASSES)
@pytest.mark.one_of_each(share=3)
def test_results_equal_the_specs(keras_workers, backend, name, library, mode, form):
    worker, case = keras_workers[backend], CASES[name]
    layout = "channels first" if library == "attzoo" and mode == "training" else "channels last"
    run = worker.prepare("block", job(case, library=library, mode=mode, form=form, layout=layout))
    expected = expected_run(case, mode)
    assert is_close(run.output, expected.output)
    assert len(run.input_gradients) == (len(case.shapes) if mode == "training" else 0)
    assert all(map(is_close, run.input_gradients, expected.input_gradients))
    assert set(run.weight_gradients) == (set(expected.weight_gradients) if mode == "training" else set())
    for key, gradient in run.weight_gradients.items():   # absolute: the gradient of a bias before a batch norm is 0
        assert gradient.shape == expected.weight_gradients[key].shape
        assert np.abs(gradient - expected.weight_gradients[key]).max() < 1e-4
    assert worker.time("block", 2) > 0


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_forget_removes_jobs(keras_workers, backend):
    keras_workers[backend].prepare("block", job(CASES["se"], form="eager"))
    keras_workers[backend].forget()
    with pytest.raises(Failed, match="KeyError: 'block'"):
        keras_workers[backend].time("block", 1)


def test_results_of_other_arguments_differ(keras_workers):
    worker = keras_workers["tensorflow"]
    sigmoid_case = CASES["se"]
    hard_case = Case("se", 8, {"reduction": 2, "gate": "hard_sigmoid"}, ((2, 8, 5, 3),), "float32")
    run = worker.prepare("wrong", job(sigmoid_case, config=hard_case.spec.config(), form="eager"))
    assert not is_close(run.output, expected_run(sigmoid_case, "inference").output)
    assert is_close(run.output, expected_run(hard_case, "inference").output)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"form": "compiled"}, "ValueError: form must be one of 'eager'"),
        ({"mode": "forward"}, "ValueError: mode must be one of"),
        ({"config": {"channels": 7}}, "ValueError: .*7"),
        ({"inputs": [np.zeros((2, 3, 5, 4), "float32")]}, r"(?s)ValueError: .*expected \(N, \*S, 8\)"),
    ],
)
def test_an_exception_in_the_process_raises_failed_and_the_process_continues(keras_workers, fields, why):
    worker = keras_workers["tensorflow"]
    worker.start()
    pid = worker.process.pid
    with pytest.raises(Failed, match=why):
        worker.prepare("x", job(CASES["se"], **{"form": "eager"} | fields))
    worker.prepare("x", job(CASES["se"], form="eager"))
    assert worker.process.pid == pid


def test_a_missing_device_raises_failed():
    with pytest.raises(Failed, match="expected a CUDA device"), Worker("jax", "cuda") as worker:
        worker.prepare("x", job(CASES["se"]))


@pytest.mark.parametrize(("has", "libraries"), [(True, {"attzoo", "plain"}), (False, {"attzoo"})])
def test_a_block_without_a_plain_keras_version_is_timed_without_it(monkeypatch, has, libraries):
    monkeypatch.setattr(keras_blocks, "has", lambda block: has)
    case = cases.Case("se", ((2, 8, 5, 3),), forms=cases.EVERY)
    with open_keras_candidates("cpu", set()) as keras_candidates:
        assert {candidate.provider.library for candidate in keras_candidates(create_subject(case, "cpu"))} == libraries


def test_plain_keras_files_are_named_like_the_blocks():
    files = {file.stem for file in Path(keras_blocks.__file__).parent.glob("[!_]*.py")}
    assert {"se", "attention_gate"} <= files <= set(attzoo.names())
    assert all(map(keras_blocks.has, files))
    assert not keras_blocks.has("none")


# ---- processes, without a framework ----------------------------------------------------------------------------------

FAKE_SERVER = """
import os, sys, time
from benchmarks.worker import Connection, serve

class Bench:
    def flags(self):
        return {"pid": str(os.getpid())}
    def prepare(self, key, job):
        return key
    def time(self, key, repeats):
        if key == "dies":
            print("out of memory", file=sys.stderr)
            os._exit(3)
        if key == "hangs":
            time.sleep(60)
        return 0.5
    def forget(self):
        pass

serve(Connection(int(sys.argv[3])), Bench)
"""


@pytest.fixture
def fake_worker(monkeypatch):
    """Provide a worker whose process runs FAKE_SERVER."""
    monkeypatch.setattr(workers, "CHILD", ("-c", FAKE_SERVER))
    with Worker("torch", limit=2) as worker:
        yield worker


def is_running(pid):
    """Whether there is a process with this id."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_closing_ends_the_process(fake_worker):
    pid = fake_worker.process.pid
    assert is_running(pid)
    fake_worker.close()
    assert not is_running(pid)
    fake_worker.close()


@pytest.mark.parametrize(
    ("key", "why"), [("dies", "got none: it ended with 3: out of memory"), ("hangs", "got none: it took more than 2 s")]
)
def test_a_process_that_dies_or_hangs_raises_failed_and_is_replaced(fake_worker, key, why):
    pid = fake_worker.process.pid
    with pytest.raises(Failed, match=why):
        fake_worker.time(key, 1)
    assert not is_running(pid)
    with pytest.raises(Failed, match="expected a process with fine, got none: Keras on torch has ended"):
        fake_worker.time("fine", 1)
    fake_worker.forget()
    assert fake_worker.prepare("fine", None) == "fine"
    assert fake_worker.time("fine", 1) == 0.5


def test_a_killed_process_raises_failed(fake_worker):
    os.kill(fake_worker.process.pid, signal.SIGKILL)
    with pytest.raises(Failed, match="torch, got none: it was ended by SIGKILL"):
        fake_worker.time("fine", 1)


def test_an_interrupted_request_ends_the_process(fake_worker, monkeypatch):
    pid = fake_worker.process.pid
    fake_worker.limit = 30
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            fake_worker.time("hangs", 1)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert not is_running(pid)


def test_a_process_ends_when_its_client_is_killed():
    code = (
        f"from benchmarks import workers\nworkers.CHILD = ('-c', {FAKE_SERVER!r})\nimport time\n"
        "worker = workers.Worker('torch'); worker.start(); print(worker.process.pid, flush=True); time.sleep(60)"
    )
    client = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    pid = int(client.stdout.readline())
    client.kill()
    client.wait()
    client.stdout.close()
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_available_imports_no_framework():
    code = (
        "import sys; from benchmarks.workers import available; print(available());"
        "assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, check=True, capture_output=True)
    assert available() == dict.fromkeys(workers.BACKENDS)


def test_available_lists_missing_packages(monkeypatch):
    monkeypatch.setattr(workers, "find_spec", lambda name: None if name in ("jax", "keras") else name)
    missing = "not installed: keras"
    assert available() == {"tensorflow": missing, "jax": f"{missing}, jax", "torch": missing}


def test_threads_are_limited_to_one_on_a_cpu_only():
    cpu, cuda_environment = environment("jax", "cpu"), environment("jax", "cuda")
    assert cpu["NPROC"] == cpu["OMP_NUM_THREADS"] == "1"
    assert cpu["JAX_PLATFORMS"] == "cpu"
    assert "NPROC" not in cuda_environment
    assert cpu["KERAS_BACKEND"] == cuda_environment["KERAS_BACKEND"] == "jax"


# ---- times -----------------------------------------------------------------------------------------------------------


def test_seconds_per_call_include_the_wait_for_results():
    now, waited_for = [0.0], []

    def call():
        now[0] += 1.0
        return len(waited_for)

    def wait(results):
        waited_for.append(len(results))
        now[0] += 6.0

    assert child.seconds(call, KEPT_RESULTS + 4, lambda: now[0], wait) == 1.0 + 6.0 / (KEPT_RESULTS + 4)
    assert waited_for == [KEPT_RESULTS]   # only the results of the last calls are stored
