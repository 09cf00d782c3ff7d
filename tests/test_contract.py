"""Arguments without effect raise; files of older versions, which contain such arguments, still load."""

import copy
import inspect
import json
import pickle
import zipfile
from importlib import import_module

import numpy as np
import pytest
import safetensors.numpy

import attzoo
from attzoo.blocks.cbam.torch import CBAM
from attzoo.contract import Weight
from attzoo.ops import torch as torch_ops
from attzoo.ops.keras import keras
from attzoo.unet.spec import UNet

BACKENDS = ("numpy", "torch", "keras")
REDUCTION = (
    "^expected reduction or reduced_channels, not both, got reduction={} and reduced_channels={}: leave one out$"
)
SIZE = "^expected {} or kernel_size, not both, got {}={} and kernel_size={}: leave one out$"
REFUSED = [   # block, arguments, error message
    ("se", (64,), {"reduction": 16, "reduced_channels": 8}, REDUCTION.format(16, 8)),
    ("se", (64, 4, 16), {}, REDUCTION.format(4, 16)),   # the values agree, but one of them has no effect
    ("channel_attention", (8, 2, 4), {}, REDUCTION.format(2, 4)),
    ("cbam", (8,), {"reduced_channels": 2, "reduction": 1}, REDUCTION.format(1, 2)),
    ("eca", (64,), {"kernel_size": 5, "gamma": 2.0}, SIZE.format("gamma", "gamma", 2.0, 5)),
    ("eca", (64,), {"kernel_size": 5, "b": 0}, SIZE.format("b", "b", 0, 5)),
    ("eca", (64, 3, 2.0, 1.0), {}, SIZE.format("gamma", "gamma", 2.0, 3)),
    ("unet", (1, 2, (4, 8)), {"block": "se", "block_options": {"reduction": 2, "reduced_channels": 3}},
     REDUCTION.format(2, 3)),
    ("unet", (1, 2, (4, 8)), {"skip": "eca", "skip_options": [{"kernel_size": 3, "gamma": 1.5}]},
     SIZE.format("gamma", "gamma", 1.5, 3)),
    ("unet", (1, 2, (4, 8, 8)), {"gated": 1, "skip_options": [{"inter_channels": 3}, {}]},
     r"skip_options must be \{\} for the 1 finest levels, which have no gate, got \[\{'inter_channels': 3\}\]$"),
]   # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "args", "kwargs", "message"), REFUSED)
def test_arguments_without_effect_raise(name, args, kwargs, message, backend):
    with pytest.raises(ValueError, match=message):
        attzoo.create(name, *args, backend=backend, **kwargs)


@pytest.mark.parametrize(("name", "kwargs", "message"), [
    ("se", {"variant": "timm", "reduction": 4, "reduced_channels": 8}, REDUCTION.format(4, 8)),
    ("eca", {"variant": "official", "gamma": 3.0}, SIZE.format("gamma", "gamma", 3.0, 3)),
    ("eca", {"variant": "timm", "b": 2.0, "kernel_size": 5}, SIZE.format("b", "b", 2.0, 5)),
])   # fmt: skip
def test_arguments_without_effect_raise_with_a_variant(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        attzoo.create(name, 64, backend="numpy", **kwargs)


EQUIVALENT = [   # arguments of the same block: the rule, its result, or a variant
    ("se", [{"reduction": 4}, {"reduced_channels": 16}, {"reduction": 4, "reduced_channels": None}]),
    ("se", [{}, {"reduction": 16}, {"reduced_channels": 4}]),
    ("se", [{"variant": "timm"}, {"reduced_channels": 8}, {"variant": "timm", "reduced_channels": 8}]),
    ("se", [{"variant": "timm", "reduction": 4}, {"reduced_channels": 16}, {"reduction": 4}]),
    ("cbam", [{"variant": "timm", "bias": True, "norm": False}, {}, {"reduced_channels": 4}]),
    ("eca", [{}, {"gamma": 2, "b": 1}, {"kernel_size": 3}, {"variant": "timm"}, {"variant": "timm", "kernel_size": 3}]),
    ("eca", [{"gamma": 1.0}, {"kernel_size": 7}, {"variant": "timm", "gamma": 1.0}]),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "alternatives"), EQUIVALENT)
def test_equivalent_arguments_give_equal_specs(name, alternatives, backend):
    specs = [attzoo.create(name, 64, backend=backend, **kwargs) for kwargs in alternatives]
    specs = specs if backend == "numpy" else [block.spec for block in specs]
    assert all(spec == specs[0] and spec.config() == specs[0].config() for spec in specs)
    assert None not in specs[0].config().values()
    assert type(specs[0])(**specs[0].config()) == specs[0]
    assert hash(specs[0]) == hash(specs[1])


def test_rules_can_be_read_from_the_spec():
    assert attzoo.create("se", 64, backend="numpy").reduction == 16
    assert attzoo.create("se", 64, 4, backend="numpy").reduction == 4
    assert attzoo.create("se", 64, reduced_channels=4, backend="numpy").reduction is None
    spec = attzoo.create("eca", 64, b=3, backend="numpy")
    assert (spec.gamma, spec.b) == (2.0, 3.0)


def test_order_of_arguments_is_unchanged():
    names = [*inspect.signature(CBAM).parameters][:8]
    assert names == ["channels", "reduction", "reduced_channels", "bias", "gate", "kernel_size", "norm", "spatial_dims"]
    assert attzoo.create("se", 64, 4, backend="torch").squeeze.out_features == 16
    assert attzoo.create("eca", 64, None, 1.0, backend="torch").conv.kernel_size == (7,)


def test_variants_with_gates_at_the_coarsest_levels_only():
    for variant, channels in (("oktay", (4, 8, 8)), ("keras", (4, 8, 8, 8)), ("monai", (4, 8, 8))):
        for gated in (None, 1, 2):
            options = {} if gated is None else {"gated": gated}
            net = attzoo.create("unet", 1, 2, channels, variant=variant, backend="numpy", **options)
            assert [level.gate is not None for level in net.levels[:-1]].count(True) == (gated or net.gates)
            assert type(net)(**json.loads(json.dumps(net.config()))) == net


# ---- files of older versions ------------------------------------------------------------------------------

PERCEPTRON = {"reduction": 16, "reduced_channels": 3, "bias": True, "gate": "sigmoid"}
UNET = {
    "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [[2, 2]], "kernel_size": 3, "norm": "batch",
    "dropout": [0.0, 0.0], "down": "max_pool", "up": "nearest", "up_kernel_size": None, "up_conv": True, "skip": "eca",
    "skip_options": [{"kernel_size": 1, "gamma": 2.0, "b": 1.0, "padding": "zeros"}], "gated": 1, "gating": "up",
    "combine": False, "concat": "skip_first", "decoder": "double", "block": "cbam",
    "block_options": [PERCEPTRON | {"kernel_size": 7, "norm": False}] * 2, "deep_supervision": False, "head": "linear",
    "initializer": "kaiming", "spatial_dims": 2,
}   # fmt: skip
OLD = {   # a config that an older version wrote, and arguments that create the same block now
    "se": ({"channels": 64} | PERCEPTRON, {"channels": 64, "reduced_channels": 3}),
    "channel_attention": ({"channels": 8} | PERCEPTRON, {"channels": 8, "reduced_channels": 3}),
    "cbam": (
        {"channels": 8} | PERCEPTRON | {"kernel_size": 3, "norm": True, "spatial_dims": 2},
        {"channels": 8, "reduced_channels": 3, "kernel_size": 3, "norm": True},
    ),
    "eca": (
        {"channels": 64, "kernel_size": 5, "gamma": 2.0, "b": 1.0, "padding": "circular"},
        {"channels": 64, "kernel_size": 5, "padding": "circular"},
    ),
    "unet": (UNET, {"in_channels": 1, "out_channels": 2, "channels": (4, 8), "skip": "eca", "block": "cbam",
                    "skip_options": {"kernel_size": 1}, "block_options": {"reduced_channels": 3}}),
}   # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "keras"])
@pytest.mark.parametrize("name", OLD)
def test_older_safetensors_files_load(name, backend, tmp_path):
    config, arguments = OLD[name]
    block = attzoo.create(name, backend="torch", **arguments)
    arrays = attzoo.weights(block)
    metadata = json.dumps({"format": 1, "block": name, "config": config})
    (tmp_path / "a").write_bytes(safetensors.numpy.save(arrays, metadata={"attzoo": metadata}))
    loaded = attzoo.load(tmp_path / "a", backend=backend)
    assert loaded.spec == block.spec
    assert all(np.array_equal(array, arrays[n]) for n, array in attzoo.weights(loaded).items())


@pytest.mark.parametrize("name", OLD)
def test_older_keras_files_load(name, tmp_path):
    config, arguments = OLD[name]
    model = attzoo.create(name, backend="keras", **arguments)
    block, x = model, np.random.default_rng(0).random((2, 8, 8, model.spec.inputs[0]), "f4")
    if name != "unet":
        inputs = keras.Input((None, None, model.spec.inputs[0]))
        model = keras.Model(inputs, block(inputs))
    y = model.predict(x, verbose=0)
    model.save(tmp_path / "new.keras")

    def restore_old_config(node):
        if isinstance(node, dict) and node.get("class_name") == type(block).__name__:
            node["config"] |= config
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            restore_old_config(inner)

    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for member in new.namelist():
            content = new.read(member)
            if member == "config.json":
                restore_old_config(tree := json.loads(content))
                content = json.dumps(tree).encode()
                assert any(rule in content for rule in (b'"reduction": 16', b'"gamma": 2.0'))
            old.writestr(member, content)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "old.keras").predict(x, verbose=0), y)


@pytest.mark.parametrize("name", OLD)
def test_copies_and_pickles_have_an_equal_spec(name):
    block = attzoo.create(name, backend="torch", **OLD[name][1])
    for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert copied.spec == block.spec
        assert copied.spec.config() == block.spec.config()
    layer = attzoo.create(name, backend="keras", **OLD[name][1])
    assert type(layer).from_config(layer.get_config()).spec == layer.spec


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float32(2), np.array([2, 2])], ids=repr)
def test_choice_refuses_values_of_another_type(value):
    with pytest.raises(ValueError, match="spatial_dims must be one of 1, 2, 3, got "):
        attzoo.create("spatial_attention", 8, backend="torch", spatial_dims=value)


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), np.array(2)], ids=repr)
def test_choice_accepts_numpy_integers(value):
    spec = attzoo.create("spatial_attention", 8, backend="torch", spatial_dims=value).spec
    assert (spec.spatial_dims, type(spec.spatial_dims)) == (2, int)


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_old_location_of_blocks_warns(backend):
    module = import_module(f"attzoo.ops.{backend}")
    new = f"attzoo.blocks.{backend}"
    with pytest.warns(DeprecationWarning, match=rf"^attzoo\.ops\.{backend}\.Block is deprecated .*: use {new}\.Block$"):
        assert module.Block is import_module(new).Block


@pytest.mark.parametrize(("skip", "expected"), [("attention_gate", {"gated": 1}), (None, {})])
def test_config_of_an_older_version_without_gates_has_their_number_removed(skip, expected):
    assert UNet.upgraded({"in_channels": 1, "skip": skip, "gated": 1}) == {"in_channels": 1, "skip": skip} | expected


def test_old_names_of_initialization_warn():
    weight = Weight((2,), "uniform", 1.0)
    with pytest.warns(DeprecationWarning, match=r"Weight\.start is deprecated .*: use Weight\.initialization"):
        assert weight.start == "uniform"
    with pytest.warns(DeprecationWarning, match=r"attzoo\.ops\.torch\.start is deprecated .*torch\.initialize"):
        assert torch_ops.start is torch_ops.initialize
