"""The folders of blocks and the lists of blocks are complete; each error names what is missing."""

from pathlib import Path

import pytest

import attzoo
from attzoo import registry
from attzoo.blocks.spec import COMBINATIONS, BlockSpec
from attzoo.testing.case import choices

FOLDER = Path(attzoo.__file__).parent / "blocks"
FOLDERS = sorted(file.parent.name for file in FOLDER.glob("*/spec.py"))
every_folder = pytest.mark.parametrize("name", FOLDERS)
CLASSES = {name: location.rpartition(":")[2] for name, location in registry.BLOCKS.items()}


@every_folder
def test_every_folder_is_registered(name):
    package, packages = f"attzoo.blocks.{name}", {location.partition(":")[0] for location in registry.BLOCKS.values()}
    assert package in packages, f'expected a row "{name}": "attzoo.blocks.{name}:..." in registry.BLOCKS'


@every_folder
@pytest.mark.parametrize("file", ["__init__.py", "spec.py", "torch.py", "keras.py"])
def test_every_folder_has_its_four_files(name, file):
    assert (FOLDER / name / file).exists(), f"expected attzoo/blocks/{name}/{file}"


@pytest.mark.parametrize("name", registry.BLOCKS)
@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_framework_modules_export_every_class(name, backend):
    module, cls = __import__(f"attzoo.{backend}", fromlist="_"), CLASSES[name]
    line = f"from .blocks.{name}.{backend} import {cls} as {cls}"
    assert getattr(module, cls, None) is registry.get(name, backend=backend), f"expected {line} in attzoo/{backend}.py"


@pytest.mark.parametrize("name", registry.BLOCKS)
def test_every_card_has_its_paragraphs(name):
    card = attzoo.info(name)
    summary = card.text.partition("\n\n")[0]
    path = f"attzoo/blocks/{name}/__init__.py"
    assert ": " in summary, f"expected a name, a colon and what it does in {path}, got {summary!r}"
    for word in ("Use it", "Source: ", "Where we differ: "):
        assert word in card.text, f"expected a paragraph {word!r} in {path}"


@pytest.mark.parametrize("name", registry.BLOCKS)
def test_every_spec_has_examples_and_choices(name):
    spec, examples = registry.get(name, backend="numpy"), registry.examples(name)
    assert "" in examples, f'expected EXAMPLES, with a first one named "", in attzoo/blocks/{name}/spec.py'
    for label, example in examples.items():
        built = spec(**example.arguments)
        built.check_inputs(*example.shapes)
        assert all(max(shape) <= 16 for shape in example.shapes), f"expected small shapes in the example {label!r}"
    arguments = {argument.name for argument in attzoo.info(name).arguments[1:]}
    listed = choices(spec).keys()
    assert listed == arguments, f"expected CHOICES for {arguments - listed} in attzoo/blocks/{name}/spec.py"
    assert issubclass(spec, BlockSpec)
    assert attzoo.info(name).build().combination in (*COMBINATIONS, "own")


@pytest.mark.parametrize("name", [name for name in registry.BLOCKS if attzoo.info(name).fused])
def test_every_block_with_kernels_has_triton_form_and_cases(name):
    pytest.importorskip("triton")
    torch_class = registry.get(name, backend="torch")
    assert torch_class.has_kernels, f"expected triton_form in attzoo/blocks/{name}/torch.py"
    assert getattr(torch_class.triton_form(), "CASES", ()), f"expected CASES in attzoo/blocks/{name}/triton.py"
