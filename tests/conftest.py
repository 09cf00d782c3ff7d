"""Configure the frameworks before they are imported, and pytest's options, markers and order of tests."""

import gc
import inspect
import json
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# The rounding of oneDNN in TensorFlow depends on the processor.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# These caches would return graphs of an earlier version of an operator.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")
if "MUTANT_UNDER_TEST" in os.environ:   # Keras inspects the arguments of a layer's __init__, which mutmut wraps
    getfullargspec = inspect.getfullargspec
    inspect.getfullargspec = lambda function: getfullargspec(inspect.unwrap(function))
with suppress(ImportError):
    import torch

    if not torch.cuda.is_available():   # run kernels in Triton's interpreter, on CPU tensors
        os.environ.setdefault("TRITON_INTERPRET", "1")
with suppress(ImportError):
    import triton  # noqa: F401

    if os.environ.get("TRITON_INTERPRET") == "1":
        import interpreter  # noqa: F401

from cases import CASES
from each import one_of_each, selection


def pytest_configure(config):
    config.addinivalue_line("markers", "one_of_each: run each parameter once, with share=N every N-th of these "
                            "combinations, with first=True only the first; --all or --thorough: all combinations")
    for number, description in CASES.items():
        config.addinivalue_line("markers", f"case{number}: {description}")


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="50 random examples per test, or 4000, instead of 6")
    parser.addoption("--few", action="store_true", help="2 examples per test, for slow Keras backends")
    parser.addoption("--each", action="store_true", help="each parameter of a test once instead of all combinations")
    parser.addoption("--share", type=int, default=1, metavar="N", help="every N-th combination of each test")
    parser.addoption("--all", action="store_true", help="all combinations also of tests with the marker one_of_each")
    parser.addoption("--rest", action="store_true", help="what the same command without --rest leaves out")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    """Select combinations of parameters, and start slow tests first, so that the worker processes finish together.

    --each selects before -k and -m, --share and the marker one_of_each after them, so that any test that they name is
    run. Tests on a GPU run all combinations.
    """
    option = config.getoption
    if option("--each"):
        select(config, items, one_of_each(items))
    yield
    if not (option("--all") or option("--thorough")):
        selected = selection(items, option("--each"), option("--share"))
        names = {item.nodeid for item in selected}
        select(config, items, [i for i in items if i.nodeid not in names] if option("--rest") else selected)
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
    if "MUTANT_UNDER_TEST" in os.environ:
        _sort_by_duration(items)
    if option("--thorough"):   # the timeouts are for 6 examples
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


def select(config, items, selected):
    """Keep the selected items, in place."""
    deselected = set(items) - set(selected)
    config.hook.pytest_deselected(items=[item for item in items if item in deselected])
    items[:] = selected


def _sort_by_duration(items):
    """Start the fastest module first, and in each module the fastest test, by the times that mutmut has recorded."""
    path = Path("mutmut-stats.json")
    durations = json.loads(path.read_text("utf-8"))["duration_by_test"] if path.exists() else {}
    totals = Counter()
    for item in items:
        totals[item.path] += durations.get(item.nodeid, 0)
    items.sort(key=lambda item: (totals[item.path], item.path, durations.get(item.nodeid, 0)))


def pytest_collection_finish():
    """Exclude objects created by imports from garbage collection, which frameworks start and which took 0.3 s."""
    from hypothesis import given, strategies

    given(strategies.none())(lambda _: None)()   # creates its random state, which it finds by `gc.get_referrers`
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()   # otherwise C++ extensions report leaks at exit


def pytest_sessionstart(session):
    from hypothesis import HealthCheck, Phase, settings
    from strategies import THOROUGH

    common = {
        "deadline": None,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.differing_executors],
        "phases": set(Phase) - {Phase.explain},   # takes minutes and seldom helps with numbers
    }
    settings.register_profile("fast", max_examples=6, derandomize=True, database=None, **common)
    settings.register_profile("few", max_examples=2, derandomize=True, database=None, **common)
    settings.register_profile("thorough", max_examples=THOROUGH, print_blob=True, **common)
    option = session.config.getoption
    settings.load_profile("thorough" if option("--thorough") else "few" if option("--few") else "fast")


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """Set fixed seeds, so that random numbers do not depend on earlier tests in the process."""
    if "torch" in sys.modules:
        torch.manual_seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Exclude objects of earlier test modules, such as graphs and compiled code, from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_recorded(monkeypatch):
    """Forget recorded kernel launches of earlier tests."""
    if tape := sys.modules.get("attzoo.fast.tape"):
        monkeypatch.setattr(tape, "RECORDED", {})


@pytest.fixture
def default_kernels():
    """Assert after the test that the choice of kernels is the default, and free compiled code."""
    from attzoo import settings

    yield
    assert settings.chosen == "auto"
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def exact_products(monkeypatch):
    """Compute float32 products on a GPU without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
