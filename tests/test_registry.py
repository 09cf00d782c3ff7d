"""Name -> class: ours, aliases, variants, third parties; and names that nobody should ask for."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import attzoo
from attzoo import registry

BUILT_IN = list(registry.BLOCKS)
ARGUMENTS = {name: (32, *(16 for a in attzoo.info(name).arguments if a.channels_of)) for name in BUILT_IN}   # required
BACKENDS = ["numpy", "torch", "keras"]
ROOT = Path(__file__).parents[1]

every_name = pytest.mark.parametrize("name", BUILT_IN)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def spec_of(block):
    return getattr(block, "spec", block)


# ---- ours ----------------------------------------------------------------------------------------------------------


def test_names():
    assert attzoo.names() == BUILT_IN
    attzoo.names().clear()   # a list of the caller's own
    assert attzoo.names() == BUILT_IN


def test_a_name_is_its_folder_and_its_folder_has_every_file():
    for name, place in registry.BLOCKS.items():
        assert place.startswith(f"attzoo.blocks.{name}:")
        assert {f"{file}.py" for file in ("__init__", "spec", "torch", "keras")} <= {
            path.name for path in (ROOT / "attzoo" / "blocks" / name).iterdir()
        }
    folders = {path.parent.name for path in (ROOT / "attzoo" / "blocks").glob("*/spec.py")}
    assert folders == set(BUILT_IN)


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_doors_open_on_the_same_classes(backend):
    door = vars(__import__(f"attzoo.{backend}", fromlist=["*"]))
    classes = {attzoo.get(name, backend=backend) for name in [*BUILT_IN, *registry.NETWORKS]}
    assert {door[cls.__name__] for cls in classes} == classes
    assert {name for name, value in door.items() if isinstance(value, type)} == {cls.__name__ for cls in classes}


@each_backend
@every_name
def test_get_and_create(name, backend):
    cls = attzoo.get(name, backend=backend)
    assert isinstance(cls, type)
    assert cls.__name__ == registry.BLOCKS[name].partition(":")[2]
    block = attzoo.create(name, *ARGUMENTS[name], backend=backend)
    assert type(block) is cls
    assert spec_of(block) == attzoo.get(name, backend="numpy")(*ARGUMENTS[name])
    assert registry.name_of(spec_of(block)) == name


@each_backend
@pytest.mark.parametrize(("alias", "name"), [
    ("squeeze_excitation", "se"), ("channel", "channel_attention"), ("spatial", "spatial_attention"),
    ("additive_gate", "attention_gate"),
])   # fmt: skip
def test_aliases(alias, name, backend):
    assert attzoo.get(alias, backend=backend) is attzoo.get(name, backend=backend)
    assert registry.variants(alias) == registry.variants(name)
    assert alias not in attzoo.names()


def test_create_passes_arguments_on():
    assert attzoo.create("cbam", 32, 4, backend="torch", kernel_size=3).spec == attzoo.create(
        "cbam", channels=32, reduction=4, kernel_size=3, backend="numpy"
    )
    block = attzoo.create("cbam", 32, backend="keras", name="mine", dtype="float16", data_format="channels_first")
    assert (block.name, block.variable_dtype, block.data_format) == ("mine", "float16", "channels_first")


@each_backend
@pytest.mark.parametrize(("args", "kwargs", "message"), [
    ((), {}, "channels"), ((8,), {"reductoin": 4}, "reductoin"), ((8,), {"channels": 4}, "multiple values"),
    ((8, 16, None, True, "sigmoid", "more"), {}, "positional argument"),
])   # fmt: skip
def test_create_drops_nothing(args, kwargs, message, backend):
    with pytest.raises((TypeError, ValueError), match=message):
        attzoo.create("se", *args, backend=backend, **kwargs)


# ---- variants ------------------------------------------------------------------------------------------------------

VARIANTS = [(name, variant) for name in BUILT_IN for variant in registry.variants(name)]
every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)


def test_variants_that_must_be_there():
    wanted = {
        "se": {"paper", "official", "timm", "moskomule"}, "eca": {"paper", "official", "timm", "circular"},
        "cbam": {"paper", "official", "timm", "luuuyi"}, "attention_gate": {"oktay", "leejunhyun", "keras"},
    }  # fmt: skip
    for name, variants in wanted.items():
        assert variants <= set(registry.variants(name))


def follows(name, argument):
    """The argument that this one is the rule for."""
    return attzoo.get(name, backend="numpy").__dataclass_fields__[argument].metadata.get("rule_for")


@every_variant
def test_a_variant_is_the_same_block_in_every_backend(name, variant):
    specs = [spec_of(attzoo.create(name, *ARGUMENTS[name], backend=b, variant=variant)) for b in BACKENDS]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].channels == 32
    for argument, value in registry.variants(name)[variant].arguments.items():
        if follows(name, argument) in registry.variants(name)[variant].rules:   # what it gave is there in its place
            continue
        found = getattr(specs[0], argument)
        assert found == value or found == (value,) * len(found)   # a stride, once for every axis
    assert registry.variants(name)[variant].source


@every_variant
def test_explicit_arguments_override_a_variant(name, variant):
    chosen = registry.variants(name)[variant]
    plain = attzoo.create(name, *ARGUMENTS[name], backend="numpy")
    for argument in {**chosen.arguments, **chosen.rules}:
        given = {argument: getattr(plain, argument)}
        block = attzoo.create(name, *ARGUMENTS[name], backend="torch", variant=variant, **given)
        if follows(name, argument) not in chosen.rules:
            assert getattr(block.spec, argument) == given[argument]


@every_variant
def test_a_variant_by_position(name, variant):
    """Arguments by position are the ones that they are by name."""
    names = [field.name for field in fields(attzoo.get(name, backend="numpy"))]
    by_name = dict(zip(names, ARGUMENTS[name], strict=False))
    assert attzoo.create(name, backend="numpy", variant=variant, **by_name) == attzoo.create(
        name, *ARGUMENTS[name], backend="numpy", variant=variant
    )


@every_variant
def test_a_variant_drops_nothing(name, variant):
    spec = attzoo.get(name, backend="numpy")
    with pytest.raises(TypeError, match="too many positional"):
        attzoo.create(name, *range(1, len(fields(spec)) + 2), backend="torch", variant=variant)
    with pytest.raises(TypeError, match="multiple values"):
        attzoo.create(name, *ARGUMENTS[name], channels=8, backend="torch", variant=variant)
    with pytest.raises(TypeError, match="typo"):
        attzoo.create(name, *ARGUMENTS[name], typo=1, backend="torch", variant=variant)
    with pytest.raises(TypeError, match="channels"):
        attzoo.create(name, backend="torch", variant=variant)
    block = attzoo.create(name, *ARGUMENTS[name], backend="keras", variant=variant, dtype="float64")
    assert block.variable_dtype == "float64"


@each_backend
def test_unknown_variants(backend):
    with pytest.raises(ValueError, match=r"unknown variant of se 'papr'; did you mean 'paper'\? Known: "):
        attzoo.create("se", 32, backend=backend, variant="papr")
    with pytest.raises(TypeError, match="variant of se must be a name, got 1"):
        attzoo.create("se", 32, backend=backend, variant=1)


# ---- names that nobody should ask for -------------------------------------------------------------------------------


@pytest.mark.parametrize(("typo", "name"), [
    ("cbma", "cbam"), ("ECA", "eca"), ("Channel-Attention", "channel_attention"), ("attention_gates", "attention_gate"),
    ("squeeze-excitation", "squeeze_excitation"),
])   # fmt: skip
@each_backend
@pytest.mark.case119
def test_the_nearest_name_is_offered(typo, name, backend):
    with pytest.raises(ValueError, match=f"unknown block '{typo}'; did you mean '{name}'[?] Known: se, channel_att.*"):
        attzoo.get(typo, backend=backend)


HOSTILE = ["../eca", "/etc/passwd", "os:system", "attzoo.blocks.eca:ECA", "__class__", "", " ", "eca ", "eca\n",
           "\u0435ca", "\uff45\uff43\uff41", "e\0ca", "\x1b[2J", "\ud800", "x" * 10_000, "eca" * 4_000]   # fmt: skip


@pytest.mark.parametrize("word", HOSTILE, ids=lambda word: ascii(word[:20]))
@pytest.mark.case120
def test_hostile_names(word, monkeypatch):
    def reached(*args):
        raise AssertionError("a name nobody registered was imported")

    monkeypatch.setattr(registry, "import_module", reached)
    monkeypatch.setattr(registry, "find_spec", reached)
    asked = [registry.variants, registry.locate]
    asked += [lambda name, f=f, b=b: f(name, backend=b) for f in (attzoo.get, attzoo.create) for b in BACKENDS]
    for ask in asked:
        with pytest.raises(ValueError, match="unknown block") as caught:
            ask(word)
        text = str(caught.value)
        assert text.isascii()   # a look-alike can be told from what it looks like
        assert text.isprintable()
        assert len(text) < 500


@pytest.mark.parametrize("word", [None, 1, b"eca", ["eca"], attzoo], ids=repr)
@pytest.mark.case120
def test_what_is_no_name(word):
    for ask in (attzoo.get, attzoo.create):
        with pytest.raises(TypeError, match="block must be a name, got "):
            ask(word, backend="torch")
        with pytest.raises(TypeError, match="backend must be a name, got "):
            ask("eca", backend=word)


@pytest.mark.parametrize("word", ["", "pytorch", "tensorflow", "jax", "torch ", "../torch", "os", "Torch", "spec"])
@pytest.mark.case122
def test_unknown_backends(word):
    for ask in (attzoo.get, attzoo.create):
        with pytest.raises(ValueError, match=f"unknown backend '{word}'.* Known: numpy, torch, keras$"):
            ask("eca", backend=word)


# ---- third parties: one that is really installed ---------------------------------------------------------------------

GUEST = """
import sys
import attzoo
from attzoo.testing import check_block

assert attzoo.names() == [*{built_in!r}, "scale"], attzoo.names()
assert not [m for m in sys.modules if m.startswith("attzoo_scale")], "a list of names ran a third party's code"

for backend, base in (("torch", "torch.nn.Module"), ("keras", "keras.Layer")):
    cls = attzoo.get("scale", backend=backend)
    assert cls.__module__ == "attzoo_scale." + backend, cls
    assert attzoo.create("scale", 3, backend=backend, variant="open").spec.start == 4.0
assert attzoo.create("scale", 3, backend="numpy").start == 0.0
try:
    attzoo.get("scael", backend="torch")
except ValueError as err:
    assert "did you mean 'scale'" in str(err), err

block = attzoo.create("scale", 3, backend="torch")
block.logit.data.copy_(block.logit.new_tensor([-1.5, 0.25, 3]))
twin = attzoo.convert(block, backend="keras")
assert type(twin) is attzoo.get("scale", backend="keras")
back = attzoo.convert(twin, backend="torch")
for path, one in (("torch.safetensors", block), ("keras.safetensors", twin)):
    attzoo.save(one, path)
    for backend in ("torch", "keras"):
        again = attzoo.load(path, backend=backend)
        for other in (twin, back, again):
            assert other.spec == block.spec
            assert attzoo.weights(other)["logit"].tolist() == [-1.5, 0.25, 3]
for backend in ("torch", "keras"):
    for finding in check_block("scale", backend):
        assert finding.failure is None, finding
print("a guest like at home")
"""


def python(program, folder, **env):
    """A fresh interpreter in `folder`, which it may import from."""
    env = {**os.environ, "PYTHONPATH": str(folder), **env}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=250)


def test_a_third_party_installs_a_block(tmp_path):
    shutil.copytree(ROOT / "tests" / "plugin", tmp_path / "project")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", tmp_path / "site", tmp_path / "project"]
    subprocess.run(command, check=True, timeout=100)
    done = python(GUEST.format(built_in=BUILT_IN), tmp_path / "site")
    assert done.stdout == "a guest like at home\n", done.stderr


# ---- third parties that go wrong -------------------------------------------------------------------------------------


@pytest.fixture
def announce(tmp_path, monkeypatch):
    """Lay down what installing a package would: its modules, and its entry points."""

    def lay(name, value, package="guest", **modules):
        site = tmp_path / package
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[attzoo.blocks]\n{name} = {value}\n")
        if modules:
            (site / package).mkdir()
            for file, text in {"__init__": "", **modules}.items():
                (site / package / f"{file}.py").write_text(text)
        monkeypatch.syspath_prepend(site)

    before = set(sys.modules)
    yield lay
    for module in set(sys.modules) - before:
        if module.partition(".")[0].startswith(("guest", "rival")):
            del sys.modules[module]


def test_one_that_is_installed_while_python_runs(announce, tmp_path, monkeypatch):
    (tmp_path / "guest").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "guest")
    assert attzoo.names() == BUILT_IN
    announce("guest", "guest:Guest")
    assert attzoo.names() == [*BUILT_IN, "guest"]
    shutil.rmtree(tmp_path / "guest" / "guest-1.0.dist-info")
    assert attzoo.names() == BUILT_IN


@pytest.mark.case123
def test_one_that_raises_on_import(announce):
    announce("guest", "guest:Guest", spec="", torch="raise RuntimeError('no good today')")
    assert attzoo.names() == [*BUILT_IN, "guest"]
    assert attzoo.get("eca", backend="torch")
    assert "guest" not in sys.modules
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^no good today$"):
            attzoo.get("guest", backend="torch")


@pytest.mark.parametrize("value", ["guest:Guest", "guest:", "guest", "guest:__doc__", "guest:len"])
@pytest.mark.case124
def test_one_without_the_class(value, announce):
    announce("guest", value, torch="'what is no class'\nlen = 5")
    assert attzoo.names() == [*BUILT_IN, "guest"]
    with pytest.raises(ImportError, match=r"expected class \w* in guest.torch, got "):
        attzoo.get("guest", backend="torch")


@pytest.mark.case124
def test_one_for_the_other_framework(announce):
    announce("guest", "guest:Guest", torch="class Guest: pass")
    assert attzoo.get("guest", backend="torch").__name__ == "Guest"
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'guest\.keras'$"):
        attzoo.get("guest", backend="keras")


def test_one_that_lacks_a_package_of_its_own(announce):
    announce("guest", "guest:Guest", torch="import guest_of_guest")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'guest_of_guest'$"):   # and no extra of ours
        attzoo.get("guest", backend="torch")


@pytest.mark.parametrize("name", ["se", "attention_gate", "channel", "additive_gate"])
@pytest.mark.case125
def test_one_that_shadows_ours(name, announce):
    announce(name, "guest:Guest", torch="class Guest: pass")
    for ask in (attzoo.names, lambda: attzoo.get(name, backend="torch"), lambda: attzoo.get("eca", backend="torch")):
        with pytest.raises(ValueError, match=f"must be unique, got another '{name}', from the package guest$"):
            ask()


@pytest.mark.case121
def test_two_of_one_name(announce):
    announce("guest", "guest:Guest")
    announce("guest", "rival:Guest", package="rival")
    for ask in (attzoo.names, lambda: attzoo.create("guest", backend="numpy")):
        with pytest.raises(ValueError, match=r"must be unique, got another 'guest', from the package (guest|rival)$"):
            ask()


@pytest.mark.case121
def test_one_announced_twice_is_one(announce):
    announce("guest", "guest:Guest")
    announce("guest", "guest:Guest", package="rival")
    assert attzoo.names() == [*BUILT_IN, "guest"]


def test_third_parties_come_by_name_after_ours(announce):
    announce("ant", "rival:Ant", package="rival")
    announce("zebra", "guest:Zebra")   # and so found first
    assert attzoo.names() == [*BUILT_IN, "ant", "zebra"]
    assert list(registry.table().items())[-2:] == [("ant", "rival:Ant"), ("zebra", "guest:Zebra")]


def test_a_twin_needs_no_registration(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "plugin")   # importable, but not installed
    from attzoo_scale.torch import Scale

    block = Scale(3, start=1.5)
    twin = attzoo.convert(block, backend="keras")
    assert type(twin).__module__ == "attzoo_scale.keras"
    assert attzoo.weights(twin)["logit"].tolist() == [1.5] * 3
    with pytest.raises(ValueError, match="expected a registered block, got attzoo_scale:Scale"):
        attzoo.save(block, tmp_path / "scale.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_a_base_class_at_its_old_place_warns(backend):
    ops = __import__(f"attzoo.ops.{backend}", fromlist="_")
    says = rf"attzoo\.ops\.{backend}\.Block is now attzoo\.blocks\.{backend}\.Block"
    with pytest.warns(DeprecationWarning, match=says):
        block = ops.Block
    assert issubclass(attzoo.get("se", backend=backend), block)
    with pytest.raises(AttributeError, match="has no attribute 'Blok'"):
        ops.Blok  # noqa: B018
