"""What is refused because no array holds it: layers that compute otherwise, and arrays that are computed."""

import copy
import os
import pickle
import random
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, parametrize, prune

import attzoo
from attzoo.blocks.cbam.torch import CBAM
from attzoo.blocks.se.torch import SE
from attzoo.ops.keras import keras

RNG = np.random.default_rng(0)


def cbam(backend="torch", **options):
    block = attzoo.create("cbam", 8, reduced_channels=3, kernel_size=3, norm=True, backend=backend, **options)
    return away(block)


def unet(backend="torch", **options):
    arguments = {"block": "eca", "skip_options": {"norm": True}, "dropout": 0.1, "up": "transpose", "decoder": "merge"}
    return away(attzoo.create("unet", 2, 3, (4, 6), backend=backend, **arguments | options))


def away(block):
    """The block with arrays that have left their start."""
    arrays = {n: RNG.uniform(0.2, 1.5, a.shape).astype("f4") for n, a in attzoo.weights(block).items()}
    attzoo.load_weights(block, arrays)
    return block


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def refused_after_change(case, tmp_path):
    make, change, path, got = case
    block = make()
    change(block)
    refused(block, path, got, tmp_path)


def refused(block, path, got, tmp_path):
    message = rf"expected {path} of \w+ to be .* got {got}.*: a file holds no such change; undo it"
    for write in (
        lambda: attzoo.save(block, tmp_path / "a.safetensors"),
        lambda: attzoo.convert(block, backend="torch"),
        lambda: attzoo.convert(block, backend="keras"),
    ):
        with pytest.raises(ValueError, match=message):
            write()
    assert not list(tmp_path.iterdir())


# ---- layers of torch -------------------------------------------------------------------------------


def put(path, make):
    """Put another layer where there is one, with its arrays where the names are the same."""

    def change(block):
        parent, _, name = path.rpartition(".")
        old = block.get_submodule(path)
        new = make(old)
        new.load_state_dict(old.state_dict(), strict=False)
        setattr(block.get_submodule(parent), name, new)

    return change


def having(path, **values):
    """Change attributes of a layer."""

    def change(block):
        for name, value in values.items():
            assert hasattr(block.get_submodule(path), name)
            setattr(block.get_submodule(path), name, value)

    return change


def replacing(path, name):
    """Put something that computes twice as much in the place of a method."""

    def change(block):
        part = block.get_submodule(path)
        method = getattr(part, name)
        setattr(part, name, lambda x: 2 * method(x))

    return change


def units(part, **values):
    part.units = tuple(replace(unit, **values) for unit in part.units)


def conv_like(**options):
    return lambda c: nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, bias=c.bias is not None, **options)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Residual(SE):
    def forward(self, x):
        return x + super().forward(x)


class Sharper(CBAM):
    def attention(self, x):
        return super().attention(x) ** 2


OTHERS = {   # what is changed, in which block, the layer that the error names, and what it says of it
    "eps": (cbam, having("spatial.norm", eps=1e-3), "spatial.norm", r"BatchNorm2d\(1, eps=0.001"),
    "momentum": (cbam, having("spatial.norm", momentum=0.01), "spatial.norm", "BatchNorm2d.*momentum=0.01"),
    "a mean of all batches": (cbam, having("spatial.norm", momentum=None), "spatial.norm", ".*momentum=None"),
    "no running statistics": (
        cbam, having("spatial.norm", track_running_stats=False), "spatial.norm", ".*track_running_stats=False"
    ),
    "group norm": (cbam, put("spatial.norm", lambda _: nn.GroupNorm(1, 1)), "spatial.norm", "GroupNorm"),
    "instance norm": (
        cbam, put("spatial.norm", lambda _: nn.InstanceNorm2d(1, affine=True, track_running_stats=True)),
        "spatial.norm", "InstanceNorm2d",
    ),
    "norm folded by hand": (cbam, put("spatial.norm", lambda _: nn.Identity()), "spatial.norm", r"Identity\(\)"),
    "dilated": (cbam, put("spatial.conv", conv_like(padding=2, dilation=2)), "spatial.conv", "Conv2d.*dilation"),
    "circular": (
        cbam, put("spatial.conv", conv_like(padding=1, padding_mode="circular")), "spatial.conv", "Conv2d.*circular"
    ),
    "no padding": (cbam, having("spatial.conv", padding=(0, 0)), "spatial.conv", r"Conv2d\(2, 1, kernel_size"),
    "a subclass that computes otherwise": (
        cbam, put("channel.excite", lambda m: Doubled(m.in_features, m.out_features)), "channel.excite", "Doubled"
    ),
    "a sequence": (
        cbam, lambda b: setattr(b.channel, "excite", nn.Sequential(b.channel.excite, nn.Tanh())),
        "channel.excite", "Sequential",
    ),
    "one part for another": (
        cbam, lambda b: setattr(b, "channel", attzoo.create("se", 8, reduced_channels=3, backend="torch")),
        "channel", "SE",
    ),
    "one layer more": (cbam, lambda b: b.add_module("after", nn.Dropout(0.5)), "after", r"Dropout\(p=0.5"),
    "a forward of a layer": (cbam, replacing("channel.excite", "forward"), "channel.excite", "one whose forward was"),
    "a forward of the block": (cbam, replacing("", "forward"), "the block", "one whose forward was replaced"),
    "an attention of a part": (cbam, replacing("spatial", "attention"), "spatial", "one whose attention was replaced"),
    "another activation inside": (
        unet, lambda b: units(b.encoder[0], activation=None), "encoder.0", "Units.*conv1: None, dropout=0.1"
    ),
    "another forward": (lambda: away(Residual(8)), lambda b: None, "the block", "Residual"),
    "another attention": (lambda: away(Sharper(8)), lambda b: None, "the block", "Sharper"),
    "eps of a gate": (unet, having("skip.0.psi_norm", eps=1e-3), "skip.0.psi_norm", ".*eps=0.001"),
    "eps of a level": (unet, having("encoder.1.norm2", eps=1e-3), "encoder.1.norm2", ".*eps=0.001"),
    "another slope": (
        unet, put("decoder.0.activation1", lambda _: nn.LeakyReLU(0.2)), "decoder.0.activation1", "LeakyReLU"
    ),
    "output padding": (unet, having("up.0.transpose", output_padding=(1, 1)), "up.0.transpose", "ConvTranspose2d"),
    "a frozen norm of another library": (
        unet, put("encoder.0.norm1", lambda n: FrozenBatchNorm2d(n.num_features)), "encoder.0.norm1", "FrozenBatch"
    ),
}  # fmt: skip


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's: the statistics do not move."""

    def __init__(self, features):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(features))


@pytest.mark.parametrize("what", OTHERS)
def test_layers_that_compute_otherwise_are_not_written(what, tmp_path):
    refused_after_change(OTHERS[what], tmp_path)


def test_a_gate_of_other_channels_is_named(tmp_path):
    net = unet()
    net.skip["0"] = attzoo.create("attention_gate", 4, 5, norm=True, backend="torch")
    refused(net, "skip.0", r"AttentionGate\(channels=4, gating_channels=5", tmp_path)


def test_a_norm_without_statistics_is_named():
    block = cbam()
    block.spatial.norm = nn.GroupNorm(1, 1)
    message = r"expected CBAM to hold spatial\.norm\.mean as it was made, got "
    for function in (attzoo.weights, lambda b: attzoo.load_weights(b, attzoo.weights(cbam()))):
        with pytest.raises(ValueError, match=f"{message}.*GroupNorm"):
            function(block)
    block = cbam()
    block.spatial.norm = nn.BatchNorm2d(1, track_running_stats=False)
    with pytest.raises(ValueError, match=f"{message}NoneType"):
        attzoo.weights(block)


class Logged(CBAM):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.log = []

    def extra_repr(self):
        return "logged, " + super().extra_repr()

    def note(self, x):
        self.log.append(x)


def in_a_compiled_layer(block):
    name, layer = next(iter(block.named_children()))
    setattr(block, name, torch.compile(layer, backend="eager"))
    return block


SAME = {   # what changes nothing that a block computes
    "frozen": lambda b: b.eval().requires_grad_(False),
    "training": lambda b: b.train(),
    "channels last": lambda b: b.to(memory_format=torch.channels_last),
    "copied": copy.deepcopy,
    "pickled": lambda b: pickle.loads(pickle.dumps(b)),
    "compiled": lambda b: torch.compile(b, backend="eager"),
    "synchronised": nn.SyncBatchNorm.convert_sync_batchnorm,
    "hooks": lambda b: b.register_forward_hook(lambda *args: None) and b,
    "float64": lambda b: b.double(),
    "never in training": lambda b: [setattr(m, "train", m.eval) for m in b.modules()] and b,
    "a layer in that of torch.compile": in_a_compiled_layer,
    "its layers compiled": lambda b: [m.compile(backend="eager") for m in b.modules()] and b,
}


@pytest.mark.parametrize("make", [cbam, unet])
@pytest.mark.parametrize("what", SAME)
def test_what_computes_the_same_is_written(what, make, tmp_path):
    block = SAME[what](make())
    attzoo.save(block, tmp_path / "a.safetensors")
    assert same(attzoo.weights(attzoo.load(tmp_path / "a.safetensors", backend="torch")), attzoo.weights(block))


def test_a_subclass_that_computes_the_same_is_written(tmp_path):
    block = away(Logged(8, norm=True))
    attzoo.save(block, tmp_path / "a.safetensors")
    assert same(attzoo.weights(attzoo.load(tmp_path / "a.safetensors", backend="torch")), attzoo.weights(block))


def test_writing_draws_no_random_numbers(tmp_path):
    for backend in ("torch", "keras"):
        for block in (cbam(backend), unet(backend)):
            keras.utils.set_random_seed(0)
            before = torch.get_rng_state(), random.getstate()
            attzoo.save(block, tmp_path / "a.safetensors")
            assert torch.equal(torch.get_rng_state(), before[0])
            assert random.getstate() == before[1]


# ---- arrays that torch computes --------------------------------------------------------------------


def old(function):
    """A function of torch.nn.utils that torch has replaced and still has."""

    def change(layer):
        with pytest.warns(FutureWarning) if function is nn.utils.weight_norm else nullcontext():
            function(layer)

    return change


class Positive(nn.Module):
    def forward(self, weight):
        return weight.abs() + 1


def pruned_twice(layer):
    prune.l1_unstructured(layer, "weight", 0.4)
    prune.random_structured(layer, "weight", 0.3, dim=0)


COMPUTED = {   # what computes a layer's weight, and what makes it a stored one again
    "weight norm": (parametrizations.weight_norm, r"remove_parametrizations\(block.channel.squeeze, 'weight'\) first"),
    "spectral norm": (parametrizations.spectral_norm, "_SpectralNorm.*torch.nn.utils.parametrize.remove_parametrizati"),
    "orthogonal": (parametrizations.orthogonal, "_Orthogonal.*torch.nn.utils.parametrize.remove_parametrizations"),
    "our own": (lambda m: parametrize.register_parametrization(m, "weight", Positive()), "Positive.*remove_parametriz"),
    "two of them": (
        lambda m: (parametrizations.weight_norm(m), parametrize.register_parametrization(m, "weight", Positive())),
        "_WeightNorm, Positive",
    ),
    "old weight norm": (old(nn.utils.weight_norm), r"torch.nn.utils.remove_weight_norm\(block.channel.squeeze"),
    "old spectral norm": (old(nn.utils.spectral_norm), "torch.nn.utils.remove_spectral_norm"),
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.5), r"torch.nn.utils.prune.remove\(block.channel.squ"),
    "pruned twice": (pruned_twice, "PruningContainer.*torch.nn.utils.prune.remove"),
    "an attribute": (lambda m: attribute(m), "make block.channel.squeeze.weight a parameter first"),
    "expanded": (lambda m: expanded(m), r"= torch.nn.Parameter\(tensor.clone\(\)\) first"),
}   # fmt: skip


def attribute(layer):
    weight = layer.weight.detach().clone()
    del layer.weight
    layer.weight = weight


def expanded(layer):
    layer.weight = nn.Parameter(torch.rand(1, 8).expand(3, 8))


@pytest.mark.parametrize("what", COMPUTED)
def test_computed_weights_are_read_as_used_and_not_written(what, tmp_path):
    change, remedy = COMPUTED[what]
    arrays, block = attzoo.weights(cbam()), cbam()
    change(block.channel.squeeze)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.3)
    block.train()
    x = torch.rand(2, 8, 5, 5)
    if what not in ("an attribute", "expanded"):   # leave what the last call has computed behind
        block(x).sum().backward()
        optimizer.step()
    state = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    found = attzoo.weights(block)
    with pytest.raises(ValueError, match=rf"expected channel\.squeeze\.weight of CBAM to be stored, got one.*{remedy}"):
        attzoo.load_weights(block, arrays)
    attzoo.save(block, tmp_path / "a.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in block.state_dict().items())
    assert all(module.training for module in block.modules())
    block.eval()
    with torch.no_grad():
        y = block(x)
        for twin in (attzoo.load(tmp_path / "a.safetensors", backend="torch"), attzoo.convert(block, backend="torch")):
            torch.testing.assert_close(twin.eval()(x), y, rtol=1e-5, atol=1e-6)
            assert same(attzoo.weights(twin), found)


@pytest.mark.parametrize("what", [what for what in COMPUTED if what not in ("an attribute", "expanded")])
def test_the_remedy_works(what):
    change, _ = COMPUTED[what]
    arrays, block = attzoo.weights(cbam()), cbam()
    change(block.channel.squeeze)
    with pytest.raises(ValueError, match=r"first$") as error:
        attzoo.load_weights(block, arrays)
    exec(str(error.value).split("computes: ")[1].removesuffix(" first"), {"torch": torch, "block": block})
    attzoo.load_weights(block, arrays)
    assert same(attzoo.weights(block), arrays)


def test_a_pruned_bias_of_a_gate_in_a_network_is_named():
    net, arrays = unet(), attzoo.weights(unet())
    before = attzoo.weights(net)
    prune.l1_unstructured(net.skip["0"].gating, "bias", 1)
    with pytest.raises(ValueError, match=r"expected skip\.0\.gating\.bias of UNet to be stored"):
        attzoo.load_weights(net, arrays)
    found = attzoo.weights(net)
    assert np.count_nonzero(found.pop("skip.0.gating.bias") == 0) == 1
    before.pop("skip.0.gating.bias")
    assert same(found, before)


def test_arrays_that_share_memory_are_not_written():
    block = attzoo.create("se", 4, reduced_channels=4, backend="torch")
    block.excite.weight = block.squeeze.weight
    before = attzoo.weights(block)
    arrays = {name: RNG.random(array.shape, "f4") for name, array in before.items()}
    with pytest.raises(ValueError, match=r"expected squeeze\.weight to hold what was written, got other numbers"):
        attzoo.load_weights(block, arrays)
    assert same(attzoo.weights(block), before)
    tied = arrays | {"excite.weight": arrays["squeeze.weight"]}
    attzoo.load_weights(block, tied)
    assert same(attzoo.weights(block), tied)


def test_a_block_without_numbers_is_neither_read_nor_written():
    with torch.device("meta"):
        block = attzoo.create("eca", 8, backend="torch")
    for function in (attzoo.weights, lambda b: attzoo.load_weights(b, {"conv.weight": np.ones(3, "f4")})):
        with pytest.raises(ValueError, match=r"ECA to hold conv\.weight .*meta device: block\.to_empty"):
            function(block)


def test_a_part_of_a_sharded_tensor_is_neither_read_nor_written():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        block = cbam()
        arrays = attzoo.weights(block)
        fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
        for function in (attzoo.weights, lambda b: attzoo.load_weights(b, arrays)):
            with pytest.raises(ValueError, match=r"got a part of a sharded tensor: block\.unshard\(\) first"):
                function(block)
        block.unshard()
        assert same(attzoo.weights(block), arrays)
    finally:
        distributed.destroy_process_group()


def test_codes_of_torch_are_not_read():
    block = cbam()
    codes = torch.randint(-99, 99, (3, 8), dtype=torch.int8)
    block.channel.squeeze.weight = nn.Parameter(codes, requires_grad=False)
    with pytest.raises(ValueError, match=r"CBAM to hold channel\.squeeze\.weight as it was made, got torch\.int8"):
        attzoo.weights(block)


class Transposed(nn.Module):
    """As Conv1D of the library transformers: a linear layer whose weight is (in, out)."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = nn.Parameter(linear.weight.detach().t().contiguous()), linear.bias

    def forward(self, x):
        return x @ self.weight + self.bias


class Adapted(nn.Module):
    """As a linear layer of the library peft: its weight is that of the layer which it adds to."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_a, self.lora_b = nn.Parameter(torch.rand(1, 8)), nn.Parameter(torch.rand(3, 1))

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + x @ self.lora_a.T @ self.lora_b.T


def quantized_in_training(linear):
    linear.weight_fake_quant = nn.Identity()
    return linear


@pytest.mark.parametrize(("make", "message"), [
    (Transposed, r"shape \(8, 3\) for \(3, 8\)"),
    (Adapted, "that of Adapted, which computes with another: merge it first"),
    (quantized_in_training, "that of Linear, which computes with another"),
    (lambda linear: nn.LazyLinear(3), "LazyLinear makes when it is first called"),
    (lambda linear: torch.ao.nn.quantized.dynamic.Linear(8, 3), "codes that Linear holds: take the weights before"),
    (lambda linear: linear.to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn"),
])   # fmt: skip
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore:.*quantiz")
def test_arrays_that_a_layer_does_not_compute_with_are_neither_read_nor_written(make, message):
    block = cbam()
    arrays = attzoo.weights(block)
    block.channel.squeeze = make(block.channel.squeeze)
    for function in (attzoo.weights, lambda b: attzoo.load_weights(b, arrays)):
        with pytest.raises(ValueError, match=rf"CBAM to hold channel\.squeeze\.\w+ as it was made, got .*{message}"):
            function(block)


def test_a_kernel_of_1_x_1_is_the_matrix():
    block = attzoo.create("se", 8, reduced_channels=3, backend="torch")
    arrays = attzoo.weights(block)
    conv = nn.Conv2d(8, 3, 1)
    conv.load_state_dict({"weight": block.squeeze.weight[..., None, None], "bias": block.squeeze.bias})
    block.squeeze = conv
    assert same(attzoo.weights(block), arrays)


def test_blocks_made_in_inference_mode_are_written_there_alone():
    with torch.inference_mode():
        block = cbam()
        arrays = attzoo.weights(block)
        attzoo.load_weights(block, arrays)
    with pytest.raises(ValueError, match=r"one that torch\.inference_mode computes: make the block outside of it"):
        attzoo.load_weights(block, arrays)


def test_on_the_meta_device_no_block_is_loaded(tmp_path):
    attzoo.save(cbam(), tmp_path / "a.safetensors")
    with torch.device("meta"), pytest.raises(ValueError, match="got the meta device: leave"):
        attzoo.load(tmp_path / "a.safetensors", backend="torch")


# ---- arrays of several dtypes ----------------------------------------------------------------------


def mixed(backend):
    """A block whose first matrix is of half precision, and whose other arrays are not."""
    block = cbam(backend)
    if backend == "torch":
        block.half().spatial.norm.float()
        return block
    block = attzoo.create("cbam", 8, reduced_channels=3, kernel_size=3, norm=True, backend="keras")
    block.channel.squeeze.dtype_policy = "float16"
    block(np.zeros((1, 4, 4, 8), "f4"))
    return block


@pytest.mark.parametrize("backend", ["torch", "keras"])
@pytest.mark.parametrize("value", [1e6, 1 + 2.0**-20])
def test_numbers_must_fit_in_the_array_that_takes_them(backend, value):
    block = mixed(backend)
    before = attzoo.weights(block)
    arrays = before | {"channel.squeeze.weight": np.full((3, 8), value, "f4")}
    with pytest.raises(ValueError, match=r"channel\.squeeze\.weight must fit in float16, got float32: cast it first"):
        attzoo.load_weights(block, arrays)
    assert same(attzoo.weights(block), before)
    attzoo.load_weights(block, before)


def test_jax_without_float64_is_not_given_float64(tmp_path):
    if not find_spec("jax"):
        pytest.skip("JAX is not installed")
    path = tmp_path / "a.safetensors"
    attzoo.save(attzoo.create("eca", 8, backend="torch", dtype=torch.float64), path)
    program = f"import attzoo; attzoo.load({str(path)!r}, backend='keras')"
    env = os.environ | {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected conv.weight to hold float64, as its block was made, got float32" in done.stderr
    assert "JAX_ENABLE_X64=1" in done.stderr


HOLD = """
from attzoo import testing
for contract in (testing.outputs, testing.gradients, testing.training, testing.files):
    for case in list(testing.CONTRACTS[contract]("eca", 0))[:2]:
        contract(case, "keras")
print("held")
"""


def test_blocks_are_checked_on_jax_without_float64():
    if not find_spec("jax"):
        pytest.skip("JAX is not installed")
    env = os.environ | {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "0"}
    done = subprocess.run([sys.executable, "-c", HOLD], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "held\n", done.stdout + done.stderr


# ---- Keras -----------------------------------------------------------------------------------------


def unbuilt(backend="keras"):
    return attzoo.create("cbam", 8, reduced_channels=3, kernel_size=3, norm=True, backend="keras")


def keras_unet():
    return unet("keras", up="nearest")


def layer_of(net, path):
    return next(layer for layer in net.layers if getattr(layer, "canonical", None) == path)


def replacing_in_keras(path, name):
    def change(block):
        part = getattr(block, path) if path else block
        method = getattr(part, name)
        object.__setattr__(part, name, lambda *args, **kwargs: 2 * method(*args, **kwargs))

    return change


KERAS = {
    "a call of an instance": (lambda: cbam("keras"), replacing_in_keras("", "call"), "the block", "one whose call was"),
    "an attention of an instance": (
        lambda: cbam("keras"), replacing_in_keras("spatial", "attention"), "spatial", "one whose attention was replaced"
    ),
    "Keras's batch norm": (
        unbuilt, lambda b: setattr(b.spatial, "norm", keras.layers.BatchNormalization(epsilon=1e-3)),
        "spatial.norm", r"BatchNormalization\(.*epsilon=0.001",
    ),
    "group norm": (
        unbuilt, lambda b: setattr(b.spatial, "norm", keras.layers.GroupNormalization(1)),
        "spatial.norm", "GroupNormalization",
    ),
    "an activation": (
        unbuilt, lambda b: setattr(b.channel.squeeze, "activation", keras.activations.tanh),
        "channel.squeeze", r"Dense\(units=3, activation='tanh'",
    ),
    "an activation, later": (
        lambda: cbam("keras"), lambda b: setattr(b.channel.excite, "activation", keras.activations.relu),
        "channel.excite", "Dense.*'relu'",
    ),
    "no bias": (
        unbuilt, lambda b: setattr(b.channel.squeeze, "use_bias", False), "channel.squeeze", ".*use_bias=False"
    ),
    "circular": (unbuilt, lambda b: setattr(b.spatial.conv, "mode", "circular"), "spatial.conv", "Conv.*circular"),
    "one layer more": (
        unbuilt, lambda b: setattr(b, "after", keras.layers.Dropout(0.5)), "after", "Dropout.*rate=0.5"
    ),
    "dropout of a network": (
        keras_unet, lambda b: setattr(layer_of(b, "encoder.0.dropout1"), "rate", 0.5),
        "encoder.0.dropout1", "Dropout.*rate=0.5",
    ),
    "dilation of a network": (
        keras_unet, lambda b: setattr(layer_of(b, "encoder.1.conv2"), "dilation_rate", (2, 2)),
        "encoder.1.conv2", "Conv2D.*dilation_rate=.2, 2",
    ),
    "resampling of a network": (
        keras_unet, lambda b: setattr(layer_of(b, "up.0.nearest"), "interpolation", "bilinear"),
        "up.0.nearest", "UpSampling2D.*bilinear",
    ),
    "a gate of a network": (
        keras_unet, lambda b: setattr(layer_of(b, "skip.0").psi, "activation", keras.activations.relu),
        "skip.0.psi", "Dense.*relu",
    ),
    "a relu of a network": (
        keras_unet, lambda b: setattr(layer_of(b, "encoder.0.relu1"), "call", keras.ops.tanh),
        "encoder.0.relu1", "one whose call was replaced",
    ),
    "a call of a network": (keras_unet, replacing_in_keras("", "call"), "the block", "one whose call was replaced"),
}   # fmt: skip


@pytest.mark.parametrize("what", KERAS)
def test_layers_of_keras_that_compute_otherwise_are_not_written(what, tmp_path):
    refused_after_change(KERAS[what], tmp_path)


def test_a_subclass_in_keras_that_computes_otherwise_is_not_written(tmp_path):
    class Doubled(attzoo.get("cbam", backend="keras")):
        def call(self, x, training=None):
            return 2 * super().call(x, training)

    refused(Doubled(8), "the block", "Doubled", tmp_path)


@pytest.mark.parametrize("what", ["frozen", "named", "regularised", "mixed", "saved by Keras"])
def test_what_computes_the_same_in_keras_is_written(what, tmp_path):
    options = {"named": {"name": "mine"}, "mixed": {"dtype": "mixed_float16"}}.get(what, {})
    for block in (cbam("keras", **options), unet("keras", **options)):
        if what == "frozen":
            block.trainable = False
        elif what == "regularised" and hasattr(block, "channel"):
            block.channel.squeeze.kernel_regularizer = keras.regularizers.L2(0.1)
        elif what == "saved by Keras" and isinstance(block, keras.Model):
            block.save(tmp_path / "a.keras")
            block = keras.models.load_model(tmp_path / "a.keras")
        attzoo.save(block, tmp_path / "a.safetensors")
        assert same(attzoo.weights(attzoo.load(tmp_path / "a.safetensors", backend="torch")), attzoo.weights(block))


def test_lora_in_keras_is_read_as_used_and_not_written(tmp_path):
    block, x = cbam("keras"), RNG.random((2, 5, 5, 8), "f4")
    plain = attzoo.weights(block)
    block.channel.squeeze.enable_lora(2)
    block.channel.squeeze.lora_kernel_b.assign(RNG.random((2, 3), "f4"))
    found = attzoo.weights(block)
    assert not same(found, plain)
    with pytest.raises(ValueError, match=r"channel\.squeeze\.weight of CBAM to be stored, got one that LoRA computes"):
        attzoo.load_weights(block, plain)
    assert same(attzoo.weights(block), found)
    attzoo.save(block, tmp_path / "a.safetensors")
    twin = attzoo.load(tmp_path / "a.safetensors", backend="keras")
    assert same(attzoo.weights(twin), found)
    np.testing.assert_allclose(twin(x), block(x), rtol=1e-5, atol=1e-6)


def test_a_layer_in_a_wrapper_is_not_written():
    block = attzoo.create("se", 8, reduced_channels=3, bias=False, backend="keras")
    block.squeeze = keras.layers.SpectralNormalization(block.squeeze)
    block(np.ones((1, 4, 4, 8), "f4"))
    arrays = attzoo.weights(block)
    with pytest.raises(ValueError, match=r"squeeze\.weight of SE to be stored, got one that SpectralNormali"):
        attzoo.load_weights(block, arrays)


def test_a_transposed_layer_of_keras_is_not_read():
    class Rows(keras.layers.Layer):
        def build(self, shape):
            self.weight = self.add_weight(shape=(8, 3))

    block = attzoo.create("se", 8, reduced_channels=3, bias=False, backend="keras")
    block.squeeze = Rows()
    with pytest.raises(ValueError, match=r"SE to hold squeeze\.weight as it was made, got shape \(8, 3\) for \(3, 8\)"):
        attzoo.weights(block)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantized_layers_of_keras_are_not_read(mode, tmp_path):
    block, arrays = attzoo.create("se", 8, reduced_channels=4, backend="keras"), None
    arrays = attzoo.weights(block)
    block.squeeze.quantize(mode)
    for function in (
        attzoo.weights,
        lambda b: attzoo.load_weights(b, arrays),
        lambda b: attzoo.save(b, tmp_path / "a.safetensors"),
        lambda b: attzoo.convert(b, backend="torch"),
    ):
        with pytest.raises(ValueError, match=rf"SE to hold squeeze\.weight .*quantized \({mode}\).*before quantize"):
            function(block)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_quantized_network_of_keras_is_not_read():
    net = keras_unet()
    net.quantize("int8")
    with pytest.raises(ValueError, match=r"UNet to hold .* got codes that Keras quantized \(int8\)"):
        attzoo.weights(net)
