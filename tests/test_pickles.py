"""Blocks pickled by an earlier version can be loaded, or raise an error that explains how to move their weights."""

import copy
import pickle

import pytest
import torch
from samples import SAMPLES
from torch import nn

import attzoo
from attzoo.blocks.torch import SpecModule
from attzoo.ops import torch_pickle
from attzoo.unet.torch import Units

MOVE = (
    r"Unpickle the block with the version of attzoo that pickled it, call attzoo\.save\(block, file\) there, "
    r"and attzoo\.load\(file, backend='torch'\) here"
)


@pytest.fixture
def pickle_old(monkeypatch):
    """Return a function that pickles a block as versions without a format number did."""

    def dump(block):
        with monkeypatch.context() as patch:
            patch.delattr(SpecModule, "__getstate__")
            return pickle.dumps(block)

    return dump


def unet(*args, **kwargs):
    """Return a U-Net in eval mode, with the same weights at every call."""
    torch.manual_seed(0)
    return attzoo.create("unet", 1, 2, *args, backend="torch", **kwargs).eval()


def assert_same(block, twin, *shapes):
    """Assert that two blocks have the same output for random inputs."""
    xs = [torch.randn(shape) for shape in shapes]
    assert torch.equal(block(*xs), twin(*xs))


NETS = {
    "gates": ((4, 8), {}),
    "blocks": ((4, 8), {"block": "cbam"}),
    "grid": ((2, 4, 4), {"variant": "oktay", "spatial_dims": 2}),
    "merged": ((2, 4), {"variant": "monai"}),
}


@pytest.mark.parametrize("name", NETS)
def test_pickle_without_a_format_number_can_be_loaded(name, pickle_old):
    channels, options = NETS[name]
    net = unet(channels, **options)
    loaded = pickle.loads(pickle_old(net))
    assert loaded.spec == net.spec
    assert_same(net, loaded, (2, 1, 8, 8))
    assert vars(loaded).keys() == vars(net).keys()


def test_pickle_with_reduction_and_reduced_channels_can_be_loaded_and_saved(pickle_old, tmp_path):
    """Earlier versions accepted both together in the options of a U-Net."""
    net = unet((4, 8), block="se")
    options = tuple({**level, "reduction": 16} for level in net.spec.block_options)
    object.__setattr__(net.spec, "block_options", options)
    with pytest.raises(ValueError, match="expected reduction or reduced_channels, not both"):
        attzoo.save(net, tmp_path / "a.safetensors")
    loaded = pickle.loads(pickle_old(net))
    assert_same(net, loaded, (2, 1, 8, 8))
    attzoo.save(loaded, tmp_path / "a.safetensors")
    assert_same(net, attzoo.load(tmp_path / "a.safetensors", backend="torch").eval(), (2, 1, 8, 8))


def test_pickle_without_newer_attributes_can_be_loaded(pickle_old):
    net = unet((4, 8))
    x = torch.randn(2, 1, 8, 8)
    expected = net(x)
    for block in (net, *(module for module in net.modules() if isinstance(module, SpecModule))):
        block.__dict__.pop("accepted", None)
    for name in ("grad_checkpointing", "fused"):
        del net.__dict__[name]
    net.spec.__dict__.pop("levels", None)
    for module in net.modules():
        if isinstance(module, Units):
            module.units = tuple(object() for _ in module.units)   # rows of a table with other columns
    loaded = pickle.loads(pickle_old(net))
    assert torch.equal(loaded(x), expected)
    loaded.set_grad_checkpointing()
    loaded.train()(x).sum().backward()


def replace_layer(net):
    """Replace a layer of a U-Net by one of another shape."""
    net.up[0].conv = nn.Conv2d(8, 4, 3, padding=1)


def delete_layer(net):
    """Delete a layer of a gate of a U-Net."""
    del net.skip["0"].psi


def set_unknown_gate(net):
    """Change the spec of a U-Net to a gate that does not exist."""
    object.__setattr__(net.spec, "skip", "no_such_gate")


def delete_channels(net):
    """Delete the channels from the spec of a U-Net."""
    del net.spec.__dict__["channels"]
    object.__setattr__(net.spec, "channels", None)


@pytest.mark.parametrize(("change", "reason"), [
    (replace_layer, "up.0.conv is now of type RepeatingConv2d, not Conv2d"),
    (delete_layer, "the class now has a submodule psi, Conv2d"),
    (set_unknown_gate, "unknown block 'no_such_gate'"),
    (delete_channels, "'NoneType' object is not iterable"),
])   # fmt: skip
def test_pickle_of_an_incompatible_network_raises(change, reason, pickle_old):
    net = unet((4, 8))
    change(net)
    message = rf"expected a UNet pickled by this version .*, got a pickle of an earlier version: .*{reason}.* {MOVE}"
    with pytest.raises(ValueError, match=message.replace("a UNet", "an? [A-Za-z]+")):
        pickle.loads(pickle_old(net))


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_pickled_block_can_be_loaded_or_raises(sample, pickle_old):
    block = sample.create("torch").eval()
    assert_same(block, pickle.loads(pickle_old(block)), *sample.shapes)
    path, _ = next(block.named_children(), (None, None))
    if path is None:   # no submodules; torch names the missing weights
        return
    delattr(block, path)
    with pytest.raises(ValueError, match=f"the class now has a submodule {path}, .* {MOVE}"):
        pickle.loads(pickle_old(block))


def test_changes_of_a_user_are_preserved(pickle_old):
    net = unet((4, 8))
    net.encoder[0].norm1 = nn.GroupNorm(2, 4)
    net.encoder[0].norm2.eps = 0.1
    net.encoder[0].note = "mine"
    loaded = pickle.loads(pickle_old(net))
    assert_same(net, loaded, (2, 1, 8, 8))
    assert (loaded.encoder[0].norm2.eps, loaded.encoder[0].note) == (0.1, "mine")


def test_pickled_network_with_folded_norms_can_be_loaded(pickle_old):
    net = unet((4, 8)).fold_norms()
    assert_same(net, pickle.loads(pickle_old(net)), (2, 1, 8, 8))


def test_pickled_subclass_with_other_arguments_can_be_loaded(pickle_old):
    block = CustomSE(8)
    assert_same(block, pickle.loads(pickle_old(block)), (2, 8, 5, 5))


class CustomSE(attzoo.get("se", backend="torch")):
    def __init__(self, width, *, extra=1):
        super().__init__(width)


def test_pickles_of_this_version_are_not_updated(monkeypatch):
    net = unet((4, 8))
    net.up[0].conv = nn.Conv2d(8, 4, 3, padding=1)   # a change of the user
    monkeypatch.setattr(torch_pickle, "update", None)
    for copied in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert type(copied.up[0].conv) is nn.Conv2d
        assert vars(copied).keys() == vars(net).keys()


def test_copy_of_a_compiled_block_has_separate_parameters():
    block = attzoo.create("se", 4, backend="torch")
    block.compile(backend="eager")
    x = torch.ones(1, 4, 2, 2)
    block(x)
    for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        with torch.no_grad():
            copied.excite.bias.fill_(-100.0)
        assert torch.equal(copied(x), torch.zeros_like(x))
        assert not torch.equal(block(x), torch.zeros_like(x))
