"""Blocks that an earlier version pickled open and compute the same, or are refused with how to move them."""

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
    r"Open it with the version that pickled it, and move its weights: there attzoo\.save\(block, file\), and here "
    r"attzoo\.load\(file, backend='torch'\)"
)


@pytest.fixture
def old(monkeypatch):
    """What pickles a block as versions did that wrote no number of the format."""

    def dump(block):
        with monkeypatch.context() as patch:
            patch.delattr(SpecModule, "__getstate__")
            return pickle.dumps(block)

    return dump


def unet(*args, **kwargs):
    torch.manual_seed(0)
    return attzoo.create("unet", 1, 2, *args, backend="torch", **kwargs).eval()


def same(block, twin, *shapes):
    xs = [torch.randn(shape) for shape in shapes]
    assert torch.equal(block(*xs), twin(*xs))


NETS = {
    "gates": ((4, 8), {}),
    "blocks": ((4, 8), {"block": "cbam"}),
    "grid": ((2, 4, 4), {"variant": "oktay", "spatial_dims": 2}),
    "merged": ((2, 4), {"variant": "monai"}),
}


@pytest.mark.parametrize("name", NETS)
def test_a_pickle_without_a_number_opens(name, old):
    channels, options = NETS[name]
    net = unet(channels, **options)
    twin = pickle.loads(old(net))
    assert twin.spec == net.spec
    same(net, twin, (2, 1, 8, 8))
    assert vars(twin).keys() == vars(net).keys()


def test_one_whose_spec_holds_rules_beside_what_they_gave_opens_and_can_be_saved(old, tmp_path):
    """As before rules were refused there: `reduction` beside `reduced_channels` in the options of a U-Net."""
    net = unet((4, 8), block="se")
    options = tuple({**each, "reduction": 16} for each in net.spec.block_options)
    object.__setattr__(net.spec, "block_options", options)
    with pytest.raises(ValueError, match="expected reduction or reduced_channels, not both"):
        attzoo.save(net, tmp_path / "a.safetensors")
    twin = pickle.loads(old(net))
    same(net, twin, (2, 1, 8, 8))
    attzoo.save(twin, tmp_path / "a.safetensors")
    same(net, attzoo.load(tmp_path / "a.safetensors", backend="torch").eval(), (2, 1, 8, 8))


def test_one_that_lacks_attributes_of_now_opens(old):
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
    twin = pickle.loads(old(net))
    assert torch.equal(twin(x), expected)
    twin.set_grad_checkpointing()
    twin.train()(x).sum().backward()


def exchanged(net):
    net.up[0].conv = nn.Conv2d(8, 4, 3, padding=1)


def lost(net):
    del net.skip["0"].psi


def idle(net):
    object.__setattr__(net.spec, "skip", "no_such_gate")


def of_another_shape(net):
    del net.spec.__dict__["channels"]
    object.__setattr__(net.spec, "channels", None)


@pytest.mark.parametrize(("change", "what"), [
    (exchanged, "up.0.conv is now of type RepeatingConv2d, not Conv2d"),
    (lost, "the class now has a submodule psi, Conv2d"),
    (idle, "unknown block 'no_such_gate'"),
    (of_another_shape, "'NoneType' object is not iterable"),
])   # fmt: skip
def test_one_that_is_made_in_another_way_now_is_refused(change, what, old):
    net = unet((4, 8))
    change(net)
    message = rf"expected a UNet pickled by this version of attzoo, got an earlier one's: .*{what}.* {MOVE}"
    with pytest.raises(ValueError, match=message.replace("a UNet", "an? [A-Za-z]+")):
        pickle.loads(old(net))


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_blocks_too(sample, old):
    block = sample.create("torch").eval()
    same(block, pickle.loads(old(block)), *sample.shapes)
    path, _ = next(block.named_children(), (None, None))
    if path is None:   # its weights are its own, and torch names those that are missing
        return
    delattr(block, path)
    with pytest.raises(ValueError, match=f"the class now has a submodule {path}, .* {MOVE}"):
        pickle.loads(old(block))


def test_what_a_user_changed_stays(old):
    net = unet((4, 8))
    net.encoder[0].norm1 = nn.GroupNorm(2, 4)
    net.encoder[0].norm2.eps = 0.1
    net.encoder[0].note = "mine"
    twin = pickle.loads(old(net))
    same(net, twin, (2, 1, 8, 8))
    assert (twin.encoder[0].norm2.eps, twin.encoder[0].note) == (0.1, "mine")


def test_a_net_for_inference_opens(old):
    net = unet((4, 8)).fold_norms()
    same(net, pickle.loads(old(net)), (2, 1, 8, 8))


def test_a_subclass_with_other_arguments_opens(old):
    block = Mine(8)
    same(block, pickle.loads(old(block)), (2, 8, 5, 5))


class Mine(attzoo.get("se", backend="torch")):
    def __init__(self, width, *, extra=1):
        super().__init__(width)


def test_pickles_of_now_are_not_looked_through(monkeypatch):
    net = unet((4, 8))
    net.up[0].conv = nn.Conv2d(8, 4, 3, padding=1)   # a user's own choice
    monkeypatch.setattr(torch_pickle, "update", None)
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert type(twin.up[0].conv) is nn.Conv2d
        assert vars(twin).keys() == vars(net).keys()


def test_a_copy_of_a_compiled_block_has_its_own_parameters():
    block = attzoo.create("se", 4, backend="torch")
    block.compile(backend="eager")
    x = torch.ones(1, 4, 2, 2)
    block(x)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        with torch.no_grad():
            twin.excite.bias.fill_(-100.0)
        assert torch.equal(twin(x), torch.zeros_like(x))
        assert not torch.equal(block(x), torch.zeros_like(x))
