import subprocess
import sys
from dataclasses import fields
from importlib import invalidate_caches
from inspect import getsourcefile, signature
from pathlib import Path

import pytest

import attzoo
from attzoo import card, registry
from attzoo.contract import Variant

BLOCKS = list(registry.BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_argument_is_told_with_its_default(name):
    found = attzoo.info(name)
    wanted = fields(registry.get(name, backend="numpy"))
    assert [a.name for a in found.arguments] == [f.name for f in wanted]
    for argument, field in zip(found.arguments, wanted, strict=True):
        assert argument.about.endswith("."), argument
        assert argument.required == (argument.name == "channels" or argument.channels_of != "")
        assert argument.required or argument.default == field.default


@pytest.mark.parametrize("name", BLOCKS)
def test_a_card_says_what_it_is_for_and_where_it_comes_from(name):
    found = attzoo.info(name)
    assert found.title
    assert found.summary
    for word in ("\n    y = ", "\nUse it ", "\nSource: ", "arXiv:", "\nWhere we differ: "):
        assert word in found.text, word


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("channels", [1, 64, 100])
def test_parameters_are_those_of_the_torch_body(name, channels):
    found = attzoo.info(name)
    block = found.create(channels, backend="torch")
    assert found.parameters(channels) == sum(p.numel() for p in block.parameters())
    assert found.weights(channels).keys() == attzoo.weights(block).keys()


def test_costs_follow_channels_and_arguments():
    assert attzoo.info("se").macs(64) == 2 * 64 * 4
    assert attzoo.info("se").macs(64, reduction=4) == 2 * 64 * 16
    assert attzoo.info("spatial_attention").macs(64, spatial_dims=1) == 56 * 2 * 7
    assert attzoo.info("spatial_attention").macs(64, spatial_dims=3, kernel_size=3) == 56**3 * 2 * 27
    assert attzoo.info("spatial_attention").parameters(64, norm=True) == 2 * 7 * 7 + 2   # two of the norm's four train
    assert attzoo.info("attention_gate").macs(8) == 56**2 * 4 * (8 + 8 + 1)
    assert attzoo.info("attention_gate").weights(8, gating_channels=3)["gating.weight"].shape == (4, 3)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("width", [80, 100])
def test_plain_text_fits_and_keeps_every_word(name, width):
    found = attzoo.info(name)
    text = found.plain(channels=32, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert not any(line != line.rstrip() for line in text.splitlines())
    for what in (found.text, *(a.about for a in found.arguments), *found.weights(32)):
        assert " ".join(what.split()) in " ".join(text.split())
    assert f"{found.parameters(32):,} parameters to train; {found.macs(32):,} multiply-adds" in " ".join(text.split())


def test_print_is_as_wide_as_the_terminal(monkeypatch):
    found = attzoo.info("attention_gate")
    for columns, width in (("60", 60), ("90", 90), ("400", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        assert str(found) == found.plain(width=width)
    assert found.plain(width=60) != found.plain(width=90)


@pytest.mark.parametrize("name", BLOCKS)
def test_markdown_tables_are_whole(name):
    page = attzoo.info(name).markdown()
    assert page.startswith(f"# {name}\n")
    assert page.endswith(".\n")
    tables = [part.splitlines() for part in page.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3 + bool(attzoo.info(name).variants)
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1, table
    assert "](https://arxiv.org/abs/" in page


def test_shapes_are_told_for_both_layouts():
    page = attzoo.info("attention_gate").markdown()
    assert "| `(N, C, *S), (N, G, *G) -> (N, 1, *S)` | `(N, *S, C), (N, *G, G) -> (N, *S, 1)` |" in page
    assert "in Keras   (N, *S, C) -> (N, *S, C)" in attzoo.info("eca").plain()


def test_starts_are_told():
    starts = {name: card._start(w) for name, w in attzoo.info("attention_gate").weights(2, norm=True).items()}
    assert starts["psi.weight"] == "normal(0, 1.414)"
    assert starts["psi.bias"] == "uniform(-1, 1)"
    assert starts["psi_norm.weight"] == "normal(1, 0.02)"
    assert starts["psi_norm.bias"] == "0"
    assert starts["psi_norm.var"] == "1, not trained"


def test_aliases_lead_to_the_same_card():
    assert attzoo.info("additive_gate") == attzoo.info("attention_gate")
    assert attzoo.info("attention_gate").aliases == ("additive_gate",)
    assert attzoo.info("eca").aliases == ()


@pytest.mark.case119
def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown block 'spacial'; did you mean 'spatial'"):
        attzoo.info("spacial")


def test_usage_runs():
    for name in BLOCKS:
        block = eval(attzoo.info(name).usage(8), {"attzoo": attzoo})
        assert attzoo.info(name).parameters(8) == sum(p.numel() for p in block.parameters())


def test_variants_are_told_with_what_their_rules_give(monkeypatch):
    def half(spec):
        """C // 2."""
        return spec.channels // 2

    chosen = {
        "plain": Variant("A. Nobody, 2020, arXiv:2001.00001v2"),
        "half": Variant("code nobody/nothing@0123abc", {"bias": False}, {"reduced_channels": half}),
    }
    monkeypatch.setattr(registry, "variants", lambda name: chosen)
    found = attzoo.info("se")
    assert found.settings("half", 10) == {"bias": False, "reduced_channels": 5}
    text = found.plain(channels=10)
    assert "  plain  the defaults\n         A. Nobody, 2020, arXiv:2001.00001v2\n" in text
    assert "  half   bias=False, reduced_channels=5 by its rule\n         code nobody/nothing@0123abc; reduced_" in text
    assert "reduced_channels: C // 2\n" in text
    page = found.markdown(10)
    assert "| `half` | `bias=False, reduced_channels=5 by its rule` | code [nobody/nothing@0123abc](https://git" in page


def test_a_variant_may_set_what_is_required(monkeypatch):
    chosen = {"narrow": Variant("a | b", {"gating_channels": 3}, {"inter_channels": lambda spec: spec.gating_channels})}
    monkeypatch.setattr(registry, "variants", lambda name: chosen)
    found = attzoo.info("attention_gate")
    assert found.settings("narrow", 10) == {"gating_channels": 3, "inter_channels": 3}
    assert "| a \\| b |" in found.markdown()   # a bar does not end its cell


@pytest.mark.parametrize("name", BLOCKS)
def test_the_variants_are_told_as_they_are_built(name):
    found = attzoo.info(name)
    assert found.variants == registry.variants(name)
    for variant in found.variants:
        spec = found.create(48, backend="numpy", variant=variant)
        assert found.build(48, **found.settings(variant, 48)) == spec


def test_the_lines_of_a_docstring_find_their_arguments():
    text = "channels: C >= 1.\n\na, b: two\n  lines: of it.\nheads: some.\nRaises ValueError where x: wrong."
    assert card._documented(text) == {
        "channels": "C >= 1.",
        "a": "two lines: of it.",
        "b": "two lines: of it.",
        "heads": "some.",
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_a_call_with_a_shortcut_and_fused_kernels_are_told_where_there_are(name):
    found, body = attzoo.info(name), registry.get(name, backend="torch")
    assert found.residual == ("shortcut" in signature(body.forward).parameters)
    assert found.fused == Path(getsourcefile(body)).with_name("triton.py").exists()
    for text in (" ".join(found.plain().split()), found.markdown()):
        assert text.count('act="relu")') == found.residual
        assert text.count("fused kernels for NVIDIA GPUs") == found.fused


def test_not_every_block_takes_a_shortcut():
    assert {attzoo.info(name).residual for name in BLOCKS} == {True, False}
    assert not attzoo.info("unet").residual
    assert not attzoo.info("unet").fused


def test_of_kernels_is_told_what_is_recorded(monkeypatch):
    for wins, told in (((), "they have not been timed yet"), (("a win",), '"auto" takes them where')):
        monkeypatch.setattr(card, "WINS", wins)
        for text in (attzoo.info("se").plain(), attzoo.info("se").markdown()):
            assert told in " ".join(text.replace("`", "").split())


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
    package = tmp_path / "strangers" / "wide"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("")
    (package / "spec.py").write_text(SPEC)
    (package / "keras.py").write_text("raise RuntimeError('a card must not open a body')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "table", lambda: registry.BLOCKS | {"wide": "strangers.wide:Wide"})
    yield attzoo.info("wide")
    for name in [name for name in sys.modules if name.partition(".")[0] == "strangers"]:
        del sys.modules[name]


def test_a_third_party_block_has_a_card_too(third_party):
    assert third_party.backends == ("keras",)
    assert third_party.title == "wide"
    assert [a.about for a in third_party.arguments] == ["", "how many."]
    assert third_party.usage(8) == 'attzoo.create("wide", 8, heads=..., backend="keras")'
    for text in (third_party.plain(), third_party.markdown()):
        assert "depends on heads" in text
    with pytest.raises(TypeError, match="heads"):
        third_party.weights(8)


def test_bodies_and_kernels_are_found_and_not_run(third_party, tmp_path):
    assert not third_party.residual
    assert not third_party.fused
    for name in ("torch.py", "triton.py"):
        (tmp_path / "strangers" / "wide" / name).write_text("raise RuntimeError('a card runs no framework')")
    invalidate_caches()
    assert attzoo.info("wide").backends == ("torch", "keras")
    assert attzoo.info("wide").fused


@pytest.mark.case128
def test_cards_need_no_framework():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'keras', 'tensorflow', 'jax', 'typer', 'rich']))\n"
        "import attzoo\n"
        "for name in attzoo.names(): print(attzoo.info(name), attzoo.info(name).markdown())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "# attention_gate" in done.stdout
