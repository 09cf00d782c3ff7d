import re
import subprocess
import sys
from dataclasses import fields
from importlib import invalidate_caches
from inspect import getsourcefile, signature
from pathlib import Path

import pytest

import attzoo
from attzoo import registry
from attzoo.card import contents, docstrings
from attzoo.contract import Variant

BLOCKS = list(registry.BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_argument_has_a_description_and_its_default(name):
    block_card = attzoo.info(name)
    spec_fields = fields(registry.get(name, backend="numpy"))
    assert [argument.name for argument in block_card.arguments] == [field.name for field in spec_fields]
    for argument, field in zip(block_card.arguments, spec_fields, strict=True):
        assert argument.about.endswith("."), argument
        assert argument.required == (argument.name == "channels" or argument.channels_of != "")
        assert argument.required or argument.default == field.default


@pytest.mark.parametrize("name", BLOCKS)
def test_text_has_formula_use_source_and_differences(name):
    block_card = attzoo.info(name)
    assert block_card.title
    assert block_card.summary
    for phrase in ("\n    y = ", "\nUse it ", "\nSource: ", "\nWhere we differ: "):
        assert phrase in block_card.text, phrase
    assert re.search(r"arXiv:|doi:|PMLR \d", block_card.text)   # the papers of SimAM and MLCA are not on arXiv


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("channels", [1, 64, 100])
def test_parameters_equal_those_of_the_torch_block(name, channels):
    block_card = attzoo.info(name)
    channels = channels if block_card.accepts(channels) else 2 * channels
    block = block_card.create(channels, backend="torch")
    assert block_card.parameters(channels) == sum(parameter.numel() for parameter in block.parameters())
    assert block_card.weights(channels).keys() == attzoo.weights(block).keys()


def test_costs_depend_on_channels_and_arguments():
    assert attzoo.info("se").macs(64) == 2 * 64 * 4
    assert attzoo.info("se").macs(64, reduction=4) == 2 * 64 * 16
    assert attzoo.info("spatial_attention").macs(64, spatial_dims=1) == 56 * 2 * 7
    assert attzoo.info("spatial_attention").macs(64, spatial_dims=3, kernel_size=3) == 56**3 * 2 * 27
    assert attzoo.info("spatial_attention").parameters(64, norm=True) == 2 * 7 * 7 + 2   # two of the norm's arrays
    assert attzoo.info("attention_gate").macs(8) == 56**2 * 4 * (8 + 8 + 1)
    assert attzoo.info("attention_gate").weights(8, gating_channels=3)["gating.weight"].shape == (4, 3)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("width", [80, 100])
def test_plain_text_fits_the_width_and_keeps_every_word(name, width):
    block_card = attzoo.info(name)
    channels = block_card.at_least(32)
    text = block_card.plain(channels=channels, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert not any(line != line.rstrip() for line in text.splitlines())
    descriptions = (argument.about for argument in block_card.arguments)
    for passage in (block_card.text, *descriptions, *block_card.weights(channels)):
        assert " ".join(passage.split()) in " ".join(text.split())
    words = " ".join(text.split())
    parameters, macs = block_card.parameters(channels), block_card.macs(channels)
    assert f"{parameters:,} trainable parameters; {macs:,} multiply-adds" in words


def test_print_is_as_wide_as_the_terminal(monkeypatch):
    block_card = attzoo.info("attention_gate")
    for columns, width in (("60", 60), ("90", 90), ("400", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        assert str(block_card) == block_card.plain(width=width)
    assert block_card.plain(width=60) != block_card.plain(width=90)


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_of_markdown_tables_have_equally_many_cells(name):
    page = attzoo.info(name).markdown()
    assert page.startswith(f"# {name}\n")
    assert page.endswith(".\n")
    tables = [part.splitlines() for part in page.split("\n\n") if part.startswith("|")]
    block_card = attzoo.info(name)
    assert len(tables) == 2 + bool(block_card.variants) + bool(block_card.weights(64))
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1, table
    assert ("](https://arxiv.org/abs/" in page) is ("arXiv:" in page)


def test_shapes_are_shown_for_both_layouts():
    page = attzoo.info("attention_gate").markdown()
    assert "| `(N, C, *S), (N, G, *G) -> (N, 1, *S)` | `(N, *S, C), (N, *G, G) -> (N, *S, 1)` |" in page
    assert "in Keras   (N, *S, C) -> (N, *S, C)" in attzoo.info("eca").plain()


def test_initializations_are_shown_as_text():
    weights = attzoo.info("attention_gate").weights(2, norm=True)
    texts = {name: contents.initialization(weight) for name, weight in weights.items()}
    assert texts["psi.weight"] == "normal(0, 1.414)"
    assert texts["psi.bias"] == "uniform(-1, 1)"
    assert texts["psi_norm.weight"] == "normal(1, 0.02)"
    assert texts["psi_norm.bias"] == "0"
    assert texts["psi_norm.var"] == "1, not trained"


def test_an_alias_gives_the_same_card():
    assert attzoo.info("additive_gate") == attzoo.info("attention_gate")
    assert attzoo.info("attention_gate").aliases == ("additive_gate",)
    assert attzoo.info("eca").aliases == ()


@pytest.mark.case119
def test_the_error_for_an_unknown_name_proposes_the_nearest():
    with pytest.raises(ValueError, match="unknown block 'spacial'; did you mean 'spatial'"):
        attzoo.info("spacial")


def test_a_block_that_refuses_64_channels_is_shown_with_more():
    block_card = attzoo.info("shuffle_attention")
    assert block_card.channels == block_card.at_least(64) == block_card.at_least(128) == 128
    assert block_card.costs == ("6 (C=128)", "0 (C=128)")
    assert block_card.assumed(128) == {}
    assert block_card.build(8).groups == block_card.assumed(8)["groups"]
    assert "Weights at 128 channels" in block_card.plain()
    assert 'attzoo.create("shuffle_attention", 8, groups=2, backend="torch")' in block_card.plain(8, 100)
    assert block_card.accepts(6)
    assert not block_card.accepts(7)
    with pytest.raises(ValueError, match="channels must be a multiple of 2"):
        block_card.build(7)


def test_usage_is_valid_python():
    for name in BLOCKS:
        block = eval(attzoo.info(name).usage(8), {"attzoo": attzoo})
        assert attzoo.info(name).parameters(8) == sum(parameter.numel() for parameter in block.parameters())


def test_variants_are_shown_with_the_results_of_their_rules(monkeypatch):
    def half(spec):
        """C // 2."""
        return spec.channels // 2

    presets = {
        "plain": Variant("A. Nobody, 2020, arXiv:2001.00001v2"),
        "half": Variant("code nobody/nothing@0123abc", {"bias": False}, {"reduced_channels": half}),
    }
    monkeypatch.setattr(registry, "variants", lambda name: presets)
    block_card = attzoo.info("se")
    assert block_card.settings("half", 10) == {"bias": False, "reduced_channels": 5}
    text = block_card.plain(channels=10)
    assert "  plain  the defaults\n         A. Nobody, 2020, arXiv:2001.00001v2\n" in text
    assert "  half   bias=False, reduced_channels=5 by its rule\n         code nobody/nothing@0123abc; reduced_" in text
    assert "reduced_channels: C // 2\n" in text
    page = block_card.markdown(10)
    assert "| `half` | `bias=False, reduced_channels=5 by its rule` | code [nobody/nothing@0123abc](https://git" in page


def test_a_variant_may_set_a_required_argument(monkeypatch):
    rules = {"inter_channels": lambda spec: spec.gating_channels}
    presets = {"narrow": Variant("a | b", {"gating_channels": 3}, rules)}
    monkeypatch.setattr(registry, "variants", lambda name: presets)
    block_card = attzoo.info("attention_gate")
    assert block_card.settings("narrow", 10) == {"gating_channels": 3, "inter_channels": 3}
    assert "| a \\| b |" in block_card.markdown()   # an escaped bar does not end its cell


@pytest.mark.parametrize("name", BLOCKS)
def test_settings_build_the_same_block_as_the_variant(name):
    block_card = attzoo.info(name)
    assert block_card.variants == registry.variants(name)
    channels = block_card.at_least(48)
    for variant in block_card.variants:
        spec = block_card.create(channels, backend="numpy", variant=variant)
        assert block_card.build(channels, **block_card.settings(variant, channels)) == spec


def test_argument_descriptions_are_read_from_the_docstring():
    text = "channels: C >= 1.\n\na, b: two\n  lines: of it.\nheads: some.\nRaises ValueError where x: wrong."
    assert docstrings.argument_descriptions(text) == {
        "channels": "C >= 1.",
        "a": "two lines: of it.",
        "b": "two lines: of it.",
        "heads": "some.",
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_shortcut_and_fused_kernels_are_shown_only_where_implemented(name):
    block_card, torch_class = attzoo.info(name), registry.get(name, backend="torch")
    assert block_card.residual == ("shortcut" in signature(torch_class.forward).parameters)
    assert block_card.fused == Path(getsourcefile(torch_class)).with_name("triton.py").exists()
    for text, mentions in ((" ".join(block_card.plain().split()), 1), (block_card.markdown(), 2)):
        assert text.count('act="relu")') == mentions * block_card.residual
        assert text.count("fused kernels for NVIDIA GPUs") == block_card.fused


def test_not_every_block_takes_a_shortcut():
    assert {attzoo.info(name).residual for name in BLOCKS} == {True, False}
    assert not attzoo.info("unet").residual
    assert not attzoo.info("unet").fused


def test_text_on_kernels_depends_on_recorded_timings(monkeypatch):
    for wins, expected in (((), "they have not been timed yet"), (("a win",), '"auto" uses them where')):
        monkeypatch.setattr(contents, "WINS", wins)
        for text in (attzoo.info("se").plain(), attzoo.info("se").markdown()):
            assert expected in " ".join(text.replace("`", "").split())


SPEC = '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Wide:
    """heads: how many."""

    channels: int
    heads: int

    def attention(self, x):
        """(N, C, *S) -> (N, 1, *S)."""

    def __call__(self, x):
        """(N, C, *S) -> (N, C, *S)."""
'''


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """Install a third-party block, and return its name."""
    package = tmp_path / "strangers" / "wide"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("")
    (package / "spec.py").write_text(SPEC)
    (package / "keras.py").write_text("raise RuntimeError('a card must not import an implementation')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "table", lambda: registry.BLOCKS | {"wide": "strangers.wide:Wide"})
    yield attzoo.info("wide")
    for name in [name for name in sys.modules if name.partition(".")[0] == "strangers"]:
        del sys.modules[name]


def test_a_third_party_block_has_a_card(third_party):
    assert third_party.backends == ("keras",)
    assert third_party.title == "wide"
    assert [argument.about for argument in third_party.arguments] == ["", "how many."]
    assert third_party.usage(8) == 'attzoo.create("wide", 8, heads=..., backend="keras")'
    for text in (third_party.plain(), third_party.markdown()):
        assert "depend on heads" in text
    with pytest.raises(TypeError, match="heads"):
        third_party.weights(8)


def test_backends_and_kernels_are_detected_without_importing_them(third_party, tmp_path):
    assert not third_party.residual
    assert not third_party.fused
    for name in ("torch.py", "triton.py"):
        (tmp_path / "strangers" / "wide" / name).write_text("raise RuntimeError('a card imports no framework')")
    invalidate_caches()
    assert attzoo.info("wide").backends == ("torch", "keras")
    assert attzoo.info("wide").fused


@pytest.mark.case128
def test_cards_import_no_framework():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'keras', 'tensorflow', 'jax', 'typer', 'rich']))\n"
        "import attzoo\n"
        "for name in attzoo.names(): print(attzoo.info(name), attzoo.info(name).markdown())"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "# attention_gate" in process.stdout
