"""Set up before any framework is loaded: quiet TensorFlow, one thread each, triton first, cases as markers."""

import gc
import inspect
import os
import sys
from contextlib import suppress

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# TensorFlow's oneDNN rounds differently from CPU to CPU
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# from these caches graphs of an operator as it once was would come back
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")
if "MUTANT_UNDER_TEST" in os.environ:   # Keras asks a layer's __init__ for its arguments, and mutmut wraps it
    arguments = inspect.getfullargspec
    inspect.getfullargspec = lambda function: arguments(inspect.unwrap(function))
with suppress(ImportError):
    import torch

    if not torch.cuda.is_available():   # kernels run in Triton's interpreter, on CPU tensors
        os.environ.setdefault("TRITON_INTERPRET", "1")
with suppress(ImportError):
    import triton  # noqa: F401

    if os.environ.get("TRITON_INTERPRET") == "1":
        import interpreter  # noqa: F401

from cases import CASES
from each import one_of_each


def pytest_configure(config):
    for number, what in CASES.items():
        config.addinivalue_line("markers", f"case{number}: {what}")


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="600 examples a test in place of 8, new ones each time")
    parser.addoption("--few", action="store_true", help="two examples a test, for Keras on its slower backends")
    parser.addoption("--each", action="store_true", help="each parameter of a test once, not all their combinations")


def pytest_collection_modifyitems(config, items):
    """What takes longest begins first, lest one process be busy with it when the other is done."""
    if config.getoption("--each"):
        chosen = one_of_each(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
    if config.getoption("--thorough"):   # the limit is made for few examples
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish():
    """What imports have created is not looked at again: frameworks call `gc.collect`, which took 0.3 s each time."""
    from hypothesis import given, strategies

    given(strategies.none())(lambda _: None)()   # its random numbers, which it later finds by `gc.get_referrers`
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()   # otherwise extensions written in C++ report leaks at exit


def pytest_sessionstart(session):
    from hypothesis import HealthCheck, Phase, settings

    common = {
        "deadline": None,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.differing_executors],
        "phases": set(Phase) - {Phase.explain},   # minutes for a failure, and it seldom explains numbers
    }
    settings.register_profile("fast", max_examples=8, derandomize=True, database=None, **common)
    settings.register_profile("few", max_examples=2, derandomize=True, database=None, **common)
    settings.register_profile("thorough", max_examples=600, print_blob=True, **common)
    option = session.config.getoption
    settings.load_profile("thorough" if option("--thorough") else "few" if option("--few") else "fast")


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """The random numbers of a test do not depend on the tests that ran before it in the same process."""
    if "torch" in sys.modules:
        torch.manual_seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """What earlier modules have left behind, such as graphs and compiled code, is not looked at again either."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_recorded(monkeypatch):
    """Kernels are launched as a test sets them up, and not as they were in the tests before it."""
    if tape := sys.modules.get("attzoo.fast.tape"):
        monkeypatch.setattr(tape, "RECORDED", {})


@pytest.fixture
def as_it_was():
    """A test leaves the choice of kernels as it found it, and no graph to the next."""
    from attzoo import settings

    yield
    assert settings.chosen == "auto"
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def exact_products(monkeypatch):
    """Products on a GPU are of float32, not of TensorFloat-32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
