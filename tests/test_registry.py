"""Lookup of blocks by name: built-in blocks, aliases, variants, third-party blocks, and invalid names."""

import shutil
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from samples import accepts

import attzoo
from attzoo import registry
from attzoo.contract import without_idle_rules
from attzoo.testing import check_block
from attzoo.testing.case import choices

BUILT_IN = list(registry.BLOCKS)
CARDS = {name: attzoo.info(name) for name in BUILT_IN}
ARGUMENTS = {   # required
    name: (card.at_least(32), *(16 for argument in card.arguments if argument.channels_of))
    for name, card in CARDS.items()
}
BACKENDS = ["numpy", "torch", "keras"]
ROOT = Path(__file__).parents[1]

every_name = pytest.mark.parametrize("name", BUILT_IN)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def spec_of(block):
    """Return the spec of a block of any backend."""
    return getattr(block, "spec", block)


# ---- built-in blocks -----------------------------------------------------------------------------------------------


def test_names_returns_a_new_list_of_built_in_blocks():
    assert attzoo.names() == BUILT_IN
    attzoo.names().clear()
    assert attzoo.names() == BUILT_IN


def test_every_block_has_a_folder_with_its_modules():
    for name, location in registry.BLOCKS.items():
        assert location.startswith(f"attzoo.blocks.{name}:")
        assert {f"{file}.py" for file in ("__init__", "spec", "torch", "keras")} <= {
            path.name for path in (ROOT / "attzoo" / "blocks" / name).iterdir()
        }
    folders = {path.parent.name for path in (ROOT / "attzoo" / "blocks").glob("*/spec.py")}
    assert folders == set(BUILT_IN)


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_framework_modules_export_the_registered_classes(backend):
    exports = vars(__import__(f"attzoo.{backend}", fromlist=["*"]))
    classes = {attzoo.get(name, backend=backend) for name in [*BUILT_IN, *registry.NETWORKS]}
    assert {exports[cls.__name__] for cls in classes} == classes
    assert {name for name, value in exports.items() if isinstance(value, type)} == {cls.__name__ for cls in classes}


@every_backend
@every_name
def test_get_and_create_agree(name, backend):
    cls = attzoo.get(name, backend=backend)
    assert isinstance(cls, type)
    assert cls.__name__ == registry.BLOCKS[name].partition(":")[2]
    block = attzoo.create(name, *ARGUMENTS[name], backend=backend)
    assert type(block) is cls
    assert spec_of(block) == attzoo.get(name, backend="numpy")(*ARGUMENTS[name])
    assert registry.name_of(spec_of(block)) == name


@every_backend
@pytest.mark.parametrize(("alias", "name"), [
    ("squeeze_excitation", "se"), ("channel", "channel_attention"), ("spatial", "spatial_attention"),
    ("additive_gate", "attention_gate"),
])   # fmt: skip
def test_alias_gives_the_same_class(alias, name, backend):
    assert attzoo.get(alias, backend=backend) is attzoo.get(name, backend=backend)
    assert registry.variants(alias) == registry.variants(name)
    assert alias not in attzoo.names()


def test_create_passes_arguments_to_the_class():
    assert attzoo.create("cbam", 32, 4, backend="torch", kernel_size=3).spec == attzoo.create(
        "cbam", channels=32, reduction=4, kernel_size=3, backend="numpy"
    )
    block = attzoo.create("cbam", 32, backend="keras", name="mine", dtype="float16", data_format="channels_first")
    assert (block.name, block.variable_dtype, block.data_format) == ("mine", "float16", "channels_first")


@every_backend
@pytest.mark.parametrize(("args", "kwargs", "message"), [
    ((), {}, "channels"), ((8,), {"reductoin": 4}, "reductoin"), ((8,), {"channels": 4}, "multiple values"),
    ((8, 16, None, True, "sigmoid", "relu", "more"), {}, "positional argument"),
])   # fmt: skip
def test_create_refuses_unknown_and_repeated_arguments(args, kwargs, message, backend):
    with pytest.raises((TypeError, ValueError), match=message):
        attzoo.create("se", *args, backend=backend, **kwargs)


# ---- variants ------------------------------------------------------------------------------------------------------

VARIANTS = [(name, variant) for name in BUILT_IN for variant in registry.variants(name)]
every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)


def test_documented_variants_exist():
    documented = {
        "se": {"paper", "official", "timm", "moskomule"}, "eca": {"paper", "official", "timm", "circular"},
        "cbam": {"paper", "official", "timm", "luuuyi"}, "attention_gate": {"oktay", "leejunhyun", "keras"},
    }  # fmt: skip
    for name, variants in documented.items():
        assert variants <= set(registry.variants(name))


def derived_by(name, argument):
    """Return the argument that a rule derives, None for other arguments."""
    return attzoo.get(name, backend="numpy").__dataclass_fields__[argument].metadata.get("rule_for")


@every_variant
def test_variant_has_the_same_spec_in_every_backend(name, variant):
    specs = [spec_of(attzoo.create(name, *ARGUMENTS[name], backend=backend, variant=variant)) for backend in BACKENDS]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].channels == ARGUMENTS[name][0]
    for argument, value in registry.variants(name)[variant].arguments.items():
        if derived_by(name, argument) in registry.variants(name)[variant].rules:   # replaced by its result
            continue
        resolved = getattr(specs[0], argument)
        assert resolved == value or resolved == (value,) * len(resolved)   # a stride is repeated for every axis
    assert registry.variants(name)[variant].source


@every_variant
def test_explicit_arguments_override_a_variant(name, variant):
    """The explicit value is the default, another choice, or the variant's: the first allowed with its other ones."""
    preset, spec = registry.variants(name)[variant], attzoo.get(name, backend="numpy")
    plain = spec(*ARGUMENTS[name])
    for argument in {**preset.arguments, **preset.rules}:
        values = [getattr(plain, argument), *(value for value in choices(spec)[argument] if value is not None)]
        values += [preset.arguments[argument]] if argument in preset.arguments else []
        together = [without_idle_rules(spec, {**preset.arguments, argument: value}) for value in values]
        create = partial(spec, *ARGUMENTS[name])
        value = next(v for v, arguments in zip(values, together, strict=True) if accepts(create, arguments))
        explicit_arguments = {argument: value}
        block = attzoo.create(name, *ARGUMENTS[name], backend="torch", variant=variant, **explicit_arguments)
        if derived_by(name, argument) not in preset.rules:
            assert getattr(block.spec, argument) == explicit_arguments[argument]


@every_variant
def test_positional_and_named_arguments_agree_with_a_variant(name, variant):
    names = [field.name for field in fields(attzoo.get(name, backend="numpy"))]
    by_name = dict(zip(names, ARGUMENTS[name], strict=False))
    assert attzoo.create(name, backend="numpy", variant=variant, **by_name) == attzoo.create(
        name, *ARGUMENTS[name], backend="numpy", variant=variant
    )


@every_variant
def test_variant_refuses_unknown_and_repeated_arguments(name, variant):
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


@every_backend
def test_unknown_variant_raises(backend):
    with pytest.raises(ValueError, match=r"unknown variant of se 'papr'; did you mean 'paper'\? Known: "):
        attzoo.create("se", 32, backend=backend, variant="papr")
    with pytest.raises(TypeError, match="variant of se must be a name, got 1"):
        attzoo.create("se", 32, backend=backend, variant=1)


# ---- invalid names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typo", "name"), [
    ("cbma", "cbam"), ("ECA", "eca"), ("Channel-Attention", "channel_attention"), ("attention_gates", "attention_gate"),
    ("squeeze-excitation", "squeeze_excitation"),
])   # fmt: skip
@every_backend
@pytest.mark.case119
def test_error_proposes_the_nearest_name(typo, name, backend):
    with pytest.raises(ValueError, match=f"unknown block '{typo}'; did you mean '{name}'[?] Known: se, channel_att.*"):
        attzoo.get(typo, backend=backend)


HOSTILE = ["../eca", "/etc/passwd", "os:system", "attzoo.blocks.eca:ECA", "__class__", "", " ", "eca ", "eca\n",
           "\u0435ca", "\uff45\uff43\uff41", "e\0ca", "\x1b[2J", "\ud800", "x" * 10_000, "eca" * 4_000]   # fmt: skip


@pytest.mark.parametrize("word", HOSTILE, ids=lambda word: ascii(word[:20]))
@pytest.mark.case120
def test_hostile_name_raises_and_imports_nothing(word, monkeypatch):
    def refuse(*args):
        raise AssertionError("an unregistered name was imported")

    monkeypatch.setattr(registry, "import_module", refuse)
    monkeypatch.setattr(registry, "find_spec", refuse)
    lookups = [registry.variants, registry.locate]
    lookups += [
        lambda name, function=function, backend=backend: function(name, backend=backend)
        for function in (attzoo.get, attzoo.create)
        for backend in BACKENDS
    ]
    for lookup in lookups:
        with pytest.raises(ValueError, match="unknown block") as caught:
            lookup(word)
        text = str(caught.value)
        assert text.isascii()   # look-alike letters are escaped
        assert text.isprintable()
        assert len(text) < 500


@pytest.mark.parametrize("word", [None, 1, b"eca", ["eca"], attzoo], ids=repr)
@pytest.mark.case120
def test_name_that_is_no_string_raises(word):
    for lookup in (attzoo.get, attzoo.create):
        with pytest.raises(TypeError, match="block must be a name, got "):
            lookup(word, backend="torch")
        with pytest.raises(TypeError, match="backend must be a name, got "):
            lookup("eca", backend=word)


@pytest.mark.parametrize("word", ["", "pytorch", "tensorflow", "jax", "torch ", "../torch", "os", "Torch", "spec"])
@pytest.mark.case122
def test_unknown_backend_raises(word):
    for lookup in (attzoo.get, attzoo.create):
        with pytest.raises(ValueError, match=f"unknown backend '{word}'.* Known: numpy, torch, keras$"):
            lookup("eca", backend=word)


# ---- installed third-party blocks ------------------------------------------------------------------------------------

@pytest.fixture
def plugin_modules():
    """Remove the modules of the tests' plugin from sys.modules, before and after a test."""

    def remove():
        for name in [name for name in sys.modules if name.partition(".")[0] == "attzoo_scale"]:
            del sys.modules[name]

    remove()
    yield
    remove()


def install_plugin(folder):
    """Install the tests' plugin with pip, and return the folder of its modules and entry points."""
    shutil.copytree(ROOT / "tests" / "plugin", folder / "project")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "project"]
    subprocess.run(command, check=True, timeout=100)
    return folder / "site"


@pytest.mark.usefixtures("plugin_modules")
def test_installed_third_party_block_works_like_a_built_in_one(tmp_path, monkeypatch):
    site = install_plugin(tmp_path)
    monkeypatch.syspath_prepend(site)
    assert attzoo.names() == [*BUILT_IN, "scale"]
    assert not [name for name in sys.modules if name.startswith("attzoo_scale")], (
        "names() imported a third-party package"
    )
    for backend in ("torch", "keras"):
        cls = attzoo.get("scale", backend=backend)
        assert cls.__module__ == f"attzoo_scale.{backend}"
        assert sys.modules[cls.__module__].__file__.startswith(str(site))
        assert attzoo.create("scale", 3, backend=backend, variant="open").spec.start == 4.0
    assert attzoo.create("scale", 3, backend="numpy").start == 0.0
    with pytest.raises(ValueError, match="did you mean 'scale'"):
        attzoo.get("scael", backend="torch")

    block = attzoo.create("scale", 3, backend="torch")
    block.logit.data.copy_(block.logit.new_tensor([-1.5, 0.25, 3]))
    converted = attzoo.convert(block, backend="keras")
    assert type(converted) is attzoo.get("scale", backend="keras")
    copies = [converted, attzoo.convert(converted, backend="torch")]
    for saved in (block, converted):
        attzoo.save(saved, path := tmp_path / f"{type(saved).__module__}.safetensors")
        copies += [attzoo.load(path, backend=backend) for backend in ("torch", "keras")]
    for copied in copies:
        assert copied.spec == block.spec
        assert attzoo.weights(copied)["logit"].tolist() == [-1.5, 0.25, 3]
    for backend in ("torch", "keras"):
        for finding in check_block("scale", backend):
            assert finding.failure is None, finding


# ---- faulty third-party packages -------------------------------------------------------------------------------------


@pytest.fixture
def install_package(tmp_path, monkeypatch):
    """Return a function that creates the modules and entry points of an installed package."""

    def install(name, value, package="guest", **modules):
        package_folder = tmp_path / package
        dist_info = package_folder / f"{package}-1.0.dist-info"
        dist_info.mkdir(parents=True)
        (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (dist_info / "entry_points.txt").write_text(f"[attzoo.blocks]\n{name} = {value}\n")
        if modules:
            (package_folder / package).mkdir()
            for file, text in {"__init__": "", **modules}.items():
                (package_folder / package / f"{file}.py").write_text(text)
        monkeypatch.syspath_prepend(package_folder)

    loaded_modules = set(sys.modules)
    yield install
    for module in set(sys.modules) - loaded_modules:
        if module.partition(".")[0].startswith(("guest", "rival")):
            del sys.modules[module]


def test_block_installed_while_python_runs_is_listed(install_package, tmp_path, monkeypatch):
    (tmp_path / "guest").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "guest")
    assert attzoo.names() == BUILT_IN
    install_package("guest", "guest:Guest")
    assert attzoo.names() == [*BUILT_IN, "guest"]
    shutil.rmtree(tmp_path / "guest" / "guest-1.0.dist-info")
    assert attzoo.names() == BUILT_IN


@pytest.mark.case123
def test_import_error_of_a_block_affects_only_that_block(install_package):
    install_package("guest", "guest:Guest", spec="", torch="raise RuntimeError('import fails')")
    assert attzoo.names() == [*BUILT_IN, "guest"]
    assert attzoo.get("eca", backend="torch")
    assert "guest" not in sys.modules
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^import fails$"):
            attzoo.get("guest", backend="torch")


@pytest.mark.parametrize("value", ["guest:Guest", "guest:", "guest", "guest:__doc__", "guest:len"])
@pytest.mark.case124
def test_entry_point_without_a_class_raises(value, install_package):
    install_package("guest", value, torch="'a docstring'\nlen = 5")
    assert attzoo.names() == [*BUILT_IN, "guest"]
    with pytest.raises(ImportError, match=r"expected class \w* in guest.torch, got "):
        attzoo.get("guest", backend="torch")


@pytest.mark.case124
def test_block_for_one_framework_raises_for_another(install_package):
    install_package("guest", "guest:Guest", torch="class Guest: pass")
    assert attzoo.get("guest", backend="torch").__name__ == "Guest"
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'guest\.keras'$"):
        attzoo.get("guest", backend="keras")


def test_missing_dependency_of_a_block_keeps_its_error(install_package):
    install_package("guest", "guest:Guest", torch="import guest_of_guest")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'guest_of_guest'$"):   # proposes no extra
        attzoo.get("guest", backend="torch")


@pytest.mark.parametrize("name", ["se", "attention_gate", "channel", "additive_gate"])
@pytest.mark.case125
def test_entry_point_with_a_built_in_name_raises(name, install_package):
    install_package(name, "guest:Guest", torch="class Guest: pass")
    for lookup in (attzoo.names, lambda: attzoo.get(name, backend="torch"), lambda: attzoo.get("eca", backend="torch")):
        with pytest.raises(ValueError, match=f"unique, got a second '{name}' from package guest: uninstall it$"):
            lookup()


@pytest.mark.case121
def test_two_blocks_with_the_same_name_raise(install_package):
    install_package("guest", "guest:Guest")
    install_package("guest", "rival:Guest", package="rival")
    for lookup in (attzoo.names, lambda: attzoo.create("guest", backend="numpy")):
        with pytest.raises(ValueError, match=r"second 'guest' from package (guest|rival): uninstall it$"):
            lookup()


@pytest.mark.case121
def test_block_declared_twice_is_listed_once(install_package):
    install_package("guest", "guest:Guest")
    install_package("guest", "guest:Guest", package="rival")
    assert attzoo.names() == [*BUILT_IN, "guest"]


def test_third_party_blocks_are_sorted_after_built_in_ones(install_package):
    install_package("ant", "rival:Ant", package="rival")
    install_package("zebra", "guest:Zebra")   # declared in the folder that is searched first
    assert attzoo.names() == [*BUILT_IN, "ant", "zebra"]
    assert list(registry.table().items())[-2:] == [("ant", "rival:Ant"), ("zebra", "guest:Zebra")]


@pytest.mark.usefixtures("plugin_modules")
def test_convert_needs_no_registration_but_save_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "plugin")   # importable, but not installed
    from attzoo_scale.torch import Scale

    block = Scale(3, start=1.5)
    converted = attzoo.convert(block, backend="keras")
    assert type(converted).__module__ == "attzoo_scale.keras"
    assert attzoo.weights(converted)["logit"].tolist() == [1.5] * 3
    with pytest.raises(ValueError, match="expected a registered block, got attzoo_scale:Scale"):
        attzoo.save(block, tmp_path / "scale.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_old_name_of_the_base_class_warns(backend):
    ops = __import__(f"attzoo.ops.{backend}", fromlist="_")
    message = rf"attzoo\.ops\.{backend}\.Block is deprecated .*: use attzoo\.blocks\.{backend}\.Block"
    with pytest.warns(DeprecationWarning, match=message):
        block = ops.Block
    assert issubclass(attzoo.get("se", backend=backend), block)
    with pytest.raises(AttributeError, match="has no attribute 'Blok'"):
        ops.Blok  # noqa: B018
