"""Weights of all blocks of a model: as arrays, in files of format 2, and between models of both frameworks."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

import attzoo
from attzoo.blocks.se import spec as spec_of_se
from attzoo.blocks.torch import IdentityStart
from attzoo.contract import Weight
from attzoo.ops.keras import keras

BACKENDS = ("torch", "keras")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_pair_of_backends = pytest.mark.parametrize(
    ("backend", "other_backend"), [(a, backend) for a in BACKENDS for backend in BACKENDS]
)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# block of `network` -> its arguments after the channels, which are 8
BLOCKS = {"se": {"reduction": 4}, "cbam": {"reduction": 4, "kernel_size": 3}}


class Network(nn.Module):
    """A torch network with convolutions and a block after each."""

    def __init__(self, blocks=tuple(BLOCKS)):
        super().__init__()
        for i, name in enumerate(blocks):
            self.add_module(f"conv{i}", nn.Conv2d(8 if i else 3, 8, 3, padding=1))
            self.add_module(f"block{i}", attzoo.create(name, 8, backend="torch", **BLOCKS[name]))

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


def keras_network(blocks=tuple(BLOCKS), names="block{}"):
    """Return the same network in Keras."""
    x = inputs = keras.Input((8, 8, 3))
    for i, name in enumerate(blocks):
        x = keras.layers.Conv2D(8, 3, padding="same", data_format="channels_last", name=f"conv{i}")(x)
        options = {"name": names.format(i), "data_format": "channels_last", **BLOCKS[name]}
        x = attzoo.create(name, 8, backend="keras", **options)(x)
    return keras.Model(inputs, x)


def network(backend, *args, **kwargs):
    """Return the same network in torch or Keras."""
    return (Network if backend == "torch" else keras_network)(*args, **kwargs)


def randomized(model, seed=0):
    """Set random weights in every block of a model, and return them."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.uniform(0.1, 2, array.shape).astype("f4") for name, array in attzoo.weights(model).items()}
    attzoo.load_weights(model, arrays)
    return arrays


def have_equal_arrays(arrays, expected):
    """Whether two dictionaries have the same names and equal arrays."""
    return arrays.keys() == expected.keys() and all(np.array_equal(arrays[name], expected[name]) for name in arrays)


def table(report):
    """Return the rows of the report that `load_weights` returns."""
    return [(match.path, match.block, match.source, match.by) for match in report]


@pytest.fixture
def path(tmp_path):
    """Path of a file that does not exist."""
    return tmp_path / "blocks.safetensors"


# ---- arrays ----------------------------------------------------------------------------------------------------------


@every_backend
def test_names_are_paths_and_canonical_names(backend):
    model = network(backend)
    arrays = attzoo.weights(model)
    specs_by_path = {"block0": attzoo.create("se", 8, backend="numpy", **BLOCKS["se"]),
                 "block1": attzoo.create("cbam", 8, backend="numpy", **BLOCKS["cbam"])}   # fmt: skip
    assert {name: array.shape for name, array in arrays.items()} == {
        f"{path}.{name}": weight.shape for path, spec in specs_by_path.items() for name, weight in spec.weights.items()}
    expected = randomized(model)
    assert have_equal_arrays(attzoo.weights(model), expected)
    if backend == "torch":
        np.testing.assert_array_equal(model.block0.squeeze.bias.detach(), expected["block0.squeeze.bias"])


def test_unet_in_a_model_counts_as_one_block():
    net = attzoo.create("unet", 1, 2, (4, 8), backend="torch", skip="attention_gate")
    model = nn.ModuleDict({"unet": net, "se": attzoo.create("se", 8, backend="torch")})
    names = attzoo.weights(model).keys()
    assert {f"unet.{name}" for name in net.spec.weights} < names
    assert attzoo.weights(nn.ModuleList([net])).keys() == {f"0.{name}" for name in net.spec.weights}


def test_block_with_two_paths_is_written_once():
    block = attzoo.create("eca", 8, backend="torch")
    assert list(attzoo.weights(nn.Sequential(nn.Identity(), block, block))) == ["1.conv.weight"]


@every_backend
@pytest.mark.parametrize(("change", "message"), [
    (lambda a: {name: array for name, array in a.items() if name != "block1.spatial.conv.weight"},
     r"missing block1\.spatial\.conv\.weight$"),
    (lambda a: a | {"block1.spatial.conv.weight": np.full((1, 2, 3, 3), np.nan, "f4")}, "must be finite"),
    (lambda a: {f"net.{name}": array for name, array in a.items()}, r"whose names begin with 'net\.'"),
])   # fmt: skip
def test_invalid_arrays_change_nothing(backend, change, message):
    model = network(backend)
    weights_before = attzoo.weights(model)
    with pytest.raises(ValueError, match=message):
        attzoo.load_weights(model, change({name: array + 1 for name, array in weights_before.items()}))
    assert have_equal_arrays(attzoo.weights(model), weights_before)


def test_error_for_a_block_leaves_all_blocks_unchanged():
    model = Network()
    nn.utils.parametrizations.weight_norm(model.block1.channel.squeeze)
    weights_before = attzoo.weights(model)
    with pytest.raises(ValueError, match="an array that a parametrization"):
        attzoo.load_weights(model, {name: array + 1 for name, array in weights_before.items()})
    assert have_equal_arrays(attzoo.weights(model), weights_before)


def test_blocks_that_share_memory_raise():
    model = Network(("se", "se"))
    model.block1.squeeze.weight = model.block0.squeeze.weight
    weights_before = attzoo.weights(model)
    arrays = {name: array + i for i, (name, array) in enumerate(weights_before.items())}
    with pytest.raises(ValueError, match=r"block0\.squeeze\.weight to hold the array written .* it shares memory"):
        attzoo.load_weights(model, arrays)
    assert have_equal_arrays(attzoo.weights(model), weights_before)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_file_contains_the_blocks_with_their_paths(path):
    model = Network()
    expected = randomized(model)
    attzoo.save(model, path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["attzoo"])
        assert have_equal_arrays({name: file.get_tensor(name) for name in file.keys()}, expected)   # noqa: SIM118
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {"format": 2, "blocks": [
        {"path": "block0", "block": "se", "config": model.block0.spec.config(), "start": "default"},
        {"path": "block1", "block": "cbam", "config": model.block1.spec.config(), "start": "default"},
    ]}   # fmt: skip


def test_both_frameworks_write_the_same_bytes(tmp_path):
    model, copied = Network(), keras_network()
    randomized(model)
    attzoo.load_weights(copied, model)
    for name, saved_model in (("torch", model), ("keras", copied)):
        attzoo.save(saved_model, tmp_path / name)
    assert (tmp_path / "torch").read_bytes() == (tmp_path / "keras").read_bytes()


@every_pair_of_backends
def test_files_are_loaded_by_path(backend, other_backend, path):
    expected = randomized(model := network(backend))
    attzoo.save(model, path)
    report = attzoo.load_weights(loaded := network(other_backend), path)
    assert have_equal_arrays(attzoo.weights(loaded), expected)
    assert table(report) == [("block0", "se", "block0", "path"), ("block1", "cbam", "block1", "path")]
    assert str(report).splitlines()[1].split() == ["block0", "se", "block0", "path"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel,
                                  lambda net: torch.compile(net, backend="eager")])   # fmt: skip
def test_wrappers_of_a_model_do_not_change_the_names(wrap, path):
    expected = randomized(model := Network())
    assert have_equal_arrays(attzoo.weights(wrap(model)), expected)
    attzoo.save(wrap(model), path)
    attzoo.load_weights(loaded := Network(), path)
    assert have_equal_arrays(attzoo.weights(loaded), expected)


def test_wrapped_block_is_saved_as_a_single_block(path):
    block = attzoo.create("se", 8, backend="torch")
    attzoo.save(torch.optim.swa_utils.AveragedModel(block), path)
    assert have_equal_arrays(attzoo.weights(attzoo.load(path, backend="keras")), attzoo.weights(block))


def test_file_of_one_block_loads_into_a_block_and_a_model(path):
    block = attzoo.create("se", 8, backend="keras", reduction=4)
    expected = randomized(block)
    attzoo.save(block, path)
    attzoo.load_weights(loaded := attzoo.create("se", 8, backend="torch", reduction=4), path)
    assert have_equal_arrays(attzoo.weights(loaded), expected)
    report = attzoo.load_weights(model := Network(("se",)), path)
    assert have_equal_arrays(attzoo.weights(model.block0), expected)
    assert table(report) == [("block0", "se", "", "kind")]
    with pytest.raises(ValueError, match=r"weights of SE\(.*reduced_channels=4.* got weights of SE\(.*channels=2"):
        attzoo.load_weights(attzoo.create("se", 8, backend="torch", reduction=2), path)


def test_load_raises_for_a_file_of_a_model(path):
    attzoo.save(Network(), path)
    with pytest.raises(ValueError, match=r"file of one block, got .* with blocks at 'block0', 'block1': attzoo.load_w"):
        attzoo.load(path, backend="torch")


def about(**fields):
    """Return a function that replaces fields of the metadata of a file."""
    return lambda metadata: metadata | fields


def block(**fields):
    """Return a function that replaces fields of the first block in the metadata of a file."""
    return lambda metadata: metadata | {"blocks": [metadata["blocks"][0] | fields, *metadata["blocks"][1:]]}


@pytest.mark.parametrize(("change", "message"), [
    (about(blocks=[]), r"expected a list of blocks, got \[\]"),
    (about(blocks={"path": "a"}), "expected a list of blocks, got {"),
    (about(blocks=[1]), r"expected a list of blocks, got \[1\]"),
    (about(more=1), "expected format, blocks in the metadata, got also"),
    (about(format=True), "expected format 1 or 2"),
    (lambda metadata: {key: text for key, text in metadata.items() if key != "sha256"},
     "expected a sha256 in the metadata, got none"),
    (about(sha256="0"), "expected content with the sha256 in"),
    (block(path=1), "expected the path of each block as text, got 1"),
    (block(path="elsewhere"), "expected arrays .*elsewhere"),
    (block(path="block1"), "expected arrays"),
    (block(more=1), "expected path, block, config, start of each block"),
    (block(start="zero"), "start must be one of 'default', 'identity', got 'zero'"),
    (block(start="identity"), r"expected arrays .*block0\.gamma"),
    (block(config=[]), "expected a mapping of a block's arguments"),
    (block(config={"channels": 2**40}), "expected block0.* as .*, got"),
    (block(block="os:system"), "unknown block 'os:system'"),
    (lambda metadata: metadata | {"blocks": [metadata["blocks"][0]] * 2},
     r"expected a different name .*, got two named block0\."),
])   # fmt: skip
def test_invalid_files_are_refused(change, message, path):
    attzoo.save(model := Network(), path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["attzoo"])
    path.write_bytes(safetensors.numpy.save(attzoo.weights(model), {"attzoo": json.dumps(change(metadata))}))
    weights_before = attzoo.weights(model)
    with pytest.raises(ValueError, match=f"(?s)is not a file of attzoo.save, or is damaged: .*{message}"):
        attzoo.load_weights(model, path)
    assert have_equal_arrays(attzoo.weights(model), weights_before)


def test_missing_files_and_changed_layers_raise(path):
    model = Network()
    with pytest.raises(FileNotFoundError):
        attzoo.load_weights(model, path)
    model.block1.channel.squeeze = nn.Identity()
    for function in (lambda: attzoo.save(model, path), lambda: attzoo.load_weights(Network(), model)):
        with pytest.raises(ValueError, match=r"expected channel\.squeeze of CBAM to be"):
            function()
    assert not path.exists()


# ---- between models of other names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "by"), [(("se", "cbam"), ["kind"] * 2), (("se", "cbam", "se"), ["order", "kind"])])
def test_blocks_with_other_paths_are_matched_by_kind_and_order(blocks, by, path):
    expected = randomized(model := Network(blocks))
    report = attzoo.load_weights(loaded_model := keras_network(blocks, names="attend_{}"), model)
    arrays = attzoo.weights(loaded_model)
    assert have_equal_arrays({name.replace("attend_", "block"): array for name, array in arrays.items()}, expected)
    by = [*by, "order"][: len(blocks)]
    assert table(report) == [(f"attend_{i}", name, f"block{i}", by[i]) for i, name in enumerate(blocks)]
    attzoo.save(loaded_model, path)
    attzoo.load_weights(loaded := Network(blocks), path)
    assert have_equal_arrays(attzoo.weights(loaded), expected)


class Renamed(nn.Module):
    """A module with blocks as its attributes."""

    def __init__(self, **blocks):
        super().__init__()
        for path, name in blocks.items():
            self.add_module(path, attzoo.create(name, 8, backend="torch", **BLOCKS[name]))


@pytest.mark.parametrize(("source_blocks", "model_blocks", "message"), [
    ({"a": "se"}, {"b": "se", "c": "se"}, r"expected weights of the model's blocks, 2 of SE\(.*\), got 1 of them"),
    ({"a": "se", "b": "cbam"}, {"c": "se"}, r"0 of CBAM\(.*\), got 1 of them: .* at 'c', .* at 'a', 'b'"),
    ({"a": "se"}, {"b": "cbam"}, r"1 of CBAM\(.*\), got 0 of them"),
    ({"a": "se", "b": "cbam"}, {"a": "cbam", "b": "se"}, r"expected weights of CBAM\(.*\) at 'a', got weights of SE\("),
    ({"a": "se", "b": "se"}, {"b": "se", "c": "se"}, r"got 'b' in both, where the order .* match it with 'a'"),
    ({"a": "se", "b": "cbam", "c": "se"}, {"d": "se", "e": "se", "f": "cbam"},
     "expected the blocks in the order of the model, SE, SE, CBAM, got SE, CBAM, SE"),
])   # fmt: skip
def test_ambiguous_matches_raise(source_blocks, model_blocks, message):
    model, source = Renamed(**model_blocks), Renamed(**source_blocks)
    weights_before = attzoo.weights(model)
    with pytest.raises(ValueError, match=message):
        attzoo.load_weights(model, source)
    assert have_equal_arrays(attzoo.weights(model), weights_before)


def test_error_for_a_source_without_blocks_names_the_argument():
    message = "^arrays: expected an attzoo block .* got Linear without any .*; for weights of another library, pass its"
    with pytest.raises(TypeError, match=message):
        attzoo.load_weights(Network(), nn.Linear(2, 2))


def test_dtypes_are_those_of_the_model():
    expected = randomized(model := Network())
    attzoo.load_weights(loaded := Network().double(), model)
    assert {a.dtype.name for a in attzoo.weights(loaded).values()} == {"float64"}
    assert have_equal_arrays(attzoo.weights(loaded), expected)
    with pytest.raises(ValueError, match="must be exact in float32, the block's dtype, got float64"):
        attzoo.load_weights(model, loaded)


def test_convert_of_a_model_raises_and_names_load_weights():
    got = r"got a Network, which besides blocks, at 'block0', 'bl.*, has layers that are not of attzoo: create it"
    with pytest.raises(TypeError, match=rf"because only these are converted, {got} .* load_weights\(new_model, path\)"):
        attzoo.convert(Network(), backend="keras")


def attached_to(backend, start):
    """Return a network of one convolution with an attached block."""
    if backend == "torch":
        net = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 1)).eval()
        return attzoo.attach(net, "eca", after="1", start=start).model
    inputs = keras.Input((8, 8, 3))
    net = keras.Model(inputs, keras.layers.Conv2D(8, 1, name="conv", data_format="channels_last")(inputs))
    return attzoo.attach(net, "eca", after="conv", start=start).model


@every_pair_of_backends
@pytest.mark.parametrize("start", ["identity", "default"])
def test_attached_blocks_keep_their_gamma(backend, other_backend, start, path):
    model = attached_to(backend, start)
    host = {"torch": "1.attention", "keras": "conv_attention"}
    expected = randomized(model)
    names = ("conv.weight", "gamma") if start == "identity" else ("conv.weight",)
    assert list(expected) == [f"{host[backend]}.{name}" for name in names]
    attzoo.save(model, path)
    report = attzoo.load_weights(loaded := attached_to(other_backend, start), path)
    path_before, path_after = host[backend], host[other_backend]
    assert have_equal_arrays(
        attzoo.weights(loaded), {f"{path_after}.{name}": expected[f"{path_before}.{name}"] for name in names}
    )
    assert table(report) == [(path_after, "eca", path_before, "path" if backend == other_backend else "kind")]


@every_backend
def test_attached_block_with_identity_start_does_not_match_its_block(backend):
    model, other = attached_to(backend, "identity"), attached_to(backend, "default")
    with pytest.raises(ValueError, match=r"expected weights of ECA\(.*\) with start='identity' at .* weights of ECA\("):
        attzoo.load_weights(model, other)


def test_outputs_agree_after_weights_are_copied_between_frameworks():
    """The convolutions of the network have the same weights in both frameworks."""
    net, copied = attached_to("torch", "identity"), attached_to("keras", "identity")
    randomized(net)
    attzoo.load_weights(copied, net)
    kernel = net[1].weight.detach().numpy()
    copied.get_layer("conv").set_weights([kernel.transpose(2, 3, 1, 0), net[1].bias.detach().numpy()])
    expected = net[1](X).detach().numpy()
    actual = np.moveaxis(keras.ops.convert_to_numpy(copied(np.moveaxis(X.numpy(), 1, -1))), -1, 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(actual, torch.conv2d(X, net[1].weight, net[1].bias).detach().numpy())


class GammaSpec(spec_of_se.SE):
    """A spec with an array named as the factor of start="identity"."""

    @property
    def weights(self):
        return super().weights | {"gamma": Weight((self.channels,), "constant")}


def test_an_array_named_gamma_is_not_mixed_up_with_the_factor():
    block = attzoo.create("se", 1, backend="torch")
    block.spec, block.gamma = GammaSpec(1), nn.Parameter(torch.ones(1))
    assert attzoo.weights(nn.Sequential(block))["0.gamma"].item() == 1
    with pytest.raises(ValueError, match="expected no array gamma in a block with start='identity', got one of Gamma"):
        attzoo.weights(nn.Sequential(IdentityStart(block)))
