"""Add the block of docs/adding-a-block.md to a copy of the repository, where tests, docs and commands must include it.

.ci/run runs it: pytest tests/adding_a_block.py. It takes two minutes.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from test_docs import ROOT, fences

from attzoo import registry

BLOCK = "attzoo/blocks/diagonal"
LINES = {   # file -> the text before which a line is inserted, and the line
    "attzoo/registry.py": ("}\nNETWORKS", '    "diagonal": "attzoo.blocks.diagonal:Diagonal",\n'),
    "attzoo/torch.py": ("    from .unet.torch", "    from .blocks.diagonal.torch import Diagonal as Diagonal\n"),
    "attzoo/keras.py": ("    from .unet.keras", "    from .blocks.diagonal.keras import Diagonal as Diagonal\n"),
}
FORM = """
    @staticmethod
    def triton_form() -> Any:
        from . import triton
        return triton
"""
SOURCES = """\"\"\"SE-Var2 in other libraries.\"\"\"

from typing import Final

from ...contract import Source
from ..sources import only_channels

SOURCES: Final = {"acme": Source("Acme", "acme_layers", "Diagonal", "paper", only_channels, {"weight": "scale"})}
"""
PEER = """
import torch

class Diagonal(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True) * self.scale[:, None, None])
"""
AOT = """
import sys
import torch, aot
cases = [case for name, case in aot.CASES if name == "diagonal"]
shape = 32, 128, 32, 32
launches = {launch for case in cases for launch in aot.launches(90, "diagonal", case, shape, torch.float32, False)}
results = {str(launch): aot.compiled(90, launch) for launch in launches}
print(len(launches), {launch: text for launch, (text, exceeds_limit) in results.items() if exceeds_limit})
"""


def relative(text):
    """Return the text of a file of the page with relative imports, as inside attzoo."""
    text = re.sub(r"from attzoo\.blocks\.", "from ..", text)
    text = re.sub(r"from attzoo\.", "from ...", re.sub(r"from attzoo import", "from ... import", text))
    return text.replace('@keras.saving.register_keras_serializable(package="acme_attention")', "@ops.register").replace(
        "from ...ops.keras import keras\n", ""
    )


def add(root):
    """Add the block to a copy of the repository, following the pages."""
    for page in ("adding-a-block.md", "adding-a-kernel.md"):
        for _, _, file, text in fences(ROOT / "docs" / page):
            if file and file.startswith("acme_attention/diagonal/"):
                target = root / BLOCK / Path(file).name
                target.parent.mkdir(exist_ok=True)
                target.write_text(relative(text) + FORM * (target.name == "torch.py"))
            elif file and file.startswith("tests/"):
                (root / file).write_text(text)
    (root / BLOCK / "sources.py").write_text(SOURCES)
    (root / "acme_layers.py").write_text(PEER)
    for file, (next_line, line) in LINES.items():
        text = (root / file).read_text()
        assert text.count(next_line) == 1, f"expected one {next_line!r} in {file}"
        (root / file).write_text(text.replace(next_line, line + next_line))
    run(root, "docs/generate.py")


def run(root, *command, may_fail=False, **env):
    """Run Python with the copy of attzoo and return its output. Asserts that it exits with 0 unless `may_fail`."""
    paths = f"{root}{os.pathsep}{root / 'tests'}"
    env = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"} | env
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST_")}
    process = subprocess.run([sys.executable, *command], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert may_fail or process.returncode == 0, process.stdout[-4000:] + process.stderr[-4000:]
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Provide the root of a copy of the repository with the block."""
    root = tmp_path_factory.mktemp("copy") / "attzoo"
    ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "*.egg-info", ".gpu", ".venv", "venv")
    shutil.copytree(ROOT, root, ignore=ignored)
    add(root)
    return root


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")


def test_tests_parametrized_by_all_blocks_include_the_new_one(copy):
    ids = run(copy, *PYTEST, "-n0", "--collect-only", "tests").splitlines()
    words = defaultdict(set)
    for test in ids:
        function, _, parameters = test.partition("[")
        words[function].update(re.findall(r"[a-z_]+", parameters))
    known_blocks = set(registry.BLOCKS)
    parametrized = {function for function, names in words.items() if len(known_blocks & names) >= len(known_blocks) - 1}
    assert len({function.partition("::")[0] for function in parametrized}) > 15
    missing = [name for name in sorted(parametrized) if "diagonal" not in words[name] and name not in SINGLE]
    assert not missing, "\n".join(missing)


SINGLE = (   # tests of error messages for single arguments
    "tests/test_values.py::test_bad_arguments",
    "tests/test_hints.py::test_an_unknown_argument_gets_the_nearest_name",
)


def test_all_tests_of_the_new_block_pass(copy):
    out = run(copy, *PYTEST, "-n2", "-k", "diagonal", "tests", may_fail=True)
    counts = re.search(r"(\d+) passed", out)
    assert counts, out[-3000:]
    assert int(counts[1]) > 150
    assert "failed" not in out.splitlines()[-1], out[-5000:]
    assert "error" not in out.splitlines()[-1], out[-5000:]


def test_the_kernels_of_the_new_block_compile_for_a_gpu(copy):
    pytest.importorskip("triton")
    count, _, wrong = run(copy, "-c", AOT, TRITON_INTERPRET="0").strip().splitlines()[-1].partition(" ")
    assert int(count) >= 4
    assert wrong == "{}"


def test_benchmark_pages_and_command_line_include_the_new_block(copy):
    print_blocks = "from benchmarks.suites import suite; print({case.block for case in suite('quick', 'cpu').cases})"
    assert "diagonal" in run(copy, "-c", print_blocks)
    print_module = "from benchmarks.suites import reference; print(reference('diagonal').module)"
    assert "acme_layers" in run(copy, "-c", print_module)
    assert "[diagonal](docs/blocks/diagonal.md)" in (copy / "README.md").read_text()
    assert "[fused kernels](../kernels.md)" in (copy / "docs" / "blocks" / "diagonal.md").read_text()
    assert "diagonal" in run(copy, "-m", "attzoo", "list")
    assert "failed" not in run(copy, "-m", "attzoo", "check", "diagonal", "--backend", "torch")


def without(text):
    """Return a function that removes a text from a file, or renames a constant to OTHER."""
    replacement = "OTHER" if text.isupper() else ""
    return lambda copy, file: (copy / file).write_text((copy / file).read_text().replace(text, replacement))


def no_file(copy, file):
    """Remove a file."""
    (copy / file).unlink()


PARTS = {   # omitted part -> its file, function that removes it, test file that fails, message
    "the row in the registry": (
        "attzoo/registry.py", without(LINES["attzoo/registry.py"][1]), "test_block_folders.py",
        'expected a row "diagonal"'),
    "the line in attzoo/torch.py": (
        "attzoo/torch.py", without(LINES["attzoo/torch.py"][1]), "test_block_folders.py",
        "expected from .blocks.diagonal.torch import Diagonal as Diagonal in attzoo/torch.py"),
    "the line in attzoo/keras.py": (
        "attzoo/keras.py", without(LINES["attzoo/keras.py"][1]), "test_block_folders.py",
        "expected from .blocks.diagonal.keras import Diagonal as Diagonal in attzoo/keras.py"),
    "the Keras implementation": (
        f"{BLOCK}/keras.py", no_file, "test_block_folders.py", "expected attzoo/blocks/diagonal/keras.py"),
    "the examples": (
        f"{BLOCK}/spec.py", without("EXAMPLES"), "test_block_folders.py", "expected EXAMPLES"),
    "an argument's choices": (
        f"{BLOCK}/spec.py", without('"bias": (False, True)'), "test_block_folders.py", "expected CHOICES for {'bias'}"),
    "the source on the card": (
        f"{BLOCK}/__init__.py", without("Source: "), "test_block_folders.py", "expected a paragraph 'Source: '"),
    "the form in torch.py": (f"{BLOCK}/torch.py", without(FORM), "test_block_folders.py", "expected triton_form"),
    "the cases of its kernels": (
        f"{BLOCK}/triton.py", without("CASES"), "test_block_folders.py", "expected CASES"),
    "its tests": (
        "tests/blocks/test_diagonal.py", no_file, "test_variants.py", "expected tests/blocks/test_diagonal.py"),
    "its page": ("docs/blocks/diagonal.md", no_file, "test_docs.py", "run: python docs/generate.py"),
}   # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_an_omitted_part_makes_a_test_fail_that_names_it(part, copy):
    file, remove, tests, message = PARTS[part]
    text = (copy / file).read_text()
    try:
        remove(copy, file)
        out = run(copy, *PYTEST, "-n0", f"tests/{tests}", "-k", "folder or framework or kernels or examples or card or "
                  "pages or test_file", may_fail=True)   # fmt: skip
    finally:
        (copy / file).write_text(text)
    assert message in out, out[-3000:]
