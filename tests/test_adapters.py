"""Blocks that files cannot store are refused: changed layers, and arrays that layers compute."""

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
    """Return a CBAM with random arrays."""
    block = attzoo.create("cbam", 8, reduced_channels=3, kernel_size=3, norm=True, backend=backend, **options)
    return randomized(block)


def unet(backend="torch", **options):
    """Return a U-Net with random arrays."""
    arguments = {"block": "eca", "skip_options": {"norm": True}, "dropout": 0.1, "up": "transpose", "decoder": "merge"}
    return randomized(attzoo.create("unet", 2, 3, (4, 6), backend=backend, **arguments | options))


def randomized(block):
    """Set all arrays of a block to random values, and return it."""
    arrays = {name: RNG.uniform(0.2, 1.5, array.shape).astype("f4") for name, array in attzoo.weights(block).items()}
    attzoo.load_weights(block, arrays)
    return block


def have_equal_arrays(arrays, other_arrays):
    """Whether two dictionaries have equal arrays."""
    return arrays.keys() == other_arrays.keys() and all(np.array_equal(arrays[n], other_arrays[n]) for n in arrays)


def assert_refused_after_change(case, tmp_path):
    """Assert that a block raises after a change."""
    create_block, change, path, got = case
    block = create_block()
    change(block)
    assert_refused(block, path, got, tmp_path)


def assert_refused(block, path, got, tmp_path):
    """Assert that save and convert raise with the layer's path and what was got, and write nothing."""
    subject = path if path == "the block" else rf"{path} of \w+"
    message = rf"expected {subject} to be .* got {got}.*: files cannot store this change, so undo the change"
    for write in (
        lambda: attzoo.save(block, tmp_path / "a.safetensors"),
        lambda: attzoo.convert(block, backend="torch"),
        lambda: attzoo.convert(block, backend="keras"),
    ):
        with pytest.raises(ValueError, match=message):
            write()
    assert not list(tmp_path.iterdir())


# ---- layers of torch -------------------------------------------------------------------------------


def replace_layer(path, create_layer):
    """Return a function that replaces a layer by another with the same arrays where their names agree."""

    def change(block):
        parent, _, name = path.rpartition(".")
        old = block.get_submodule(path)
        new = create_layer(old)
        new.load_state_dict(old.state_dict(), strict=False)
        setattr(block.get_submodule(parent), name, new)

    return change


def set_attributes(path, **values):
    """Return a function that changes attributes of a layer."""

    def change(block):
        for name, value in values.items():
            assert hasattr(block.get_submodule(path), name)
            setattr(block.get_submodule(path), name, value)

    return change


def replace_method(path, name):
    """Return a function that replaces a method by one that returns twice its result."""

    def change(block):
        part = block.get_submodule(path)
        method = getattr(part, name)
        setattr(part, name, lambda x: 2 * method(x))

    return change


def change_units(part, **values):
    """Replace fields of all units of a part."""
    part.units = tuple(replace(unit, **values) for unit in part.units)


def conv_like(**options):
    """Return a function that creates a convolution of the same size with other options."""
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


CHANGES = {   # change -> block, function that changes it, layer in the error, and its description there
    "eps": (cbam, set_attributes("spatial.norm", eps=1e-3), "spatial.norm", r"BatchNorm2d\(1, eps=0.001"),
    "momentum": (cbam, set_attributes("spatial.norm", momentum=0.01), "spatial.norm", "BatchNorm2d.*momentum=0.01"),
    "cumulative average": (cbam, set_attributes("spatial.norm", momentum=None), "spatial.norm", ".*momentum=None"),
    "no running statistics": (
        cbam, set_attributes("spatial.norm", track_running_stats=False), "spatial.norm", ".*track_running_stats=False"
    ),
    "group norm": (cbam, replace_layer("spatial.norm", lambda _: nn.GroupNorm(1, 1)), "spatial.norm", "GroupNorm"),
    "instance norm": (
        cbam, replace_layer("spatial.norm", lambda _: nn.InstanceNorm2d(1, affine=True, track_running_stats=True)),
        "spatial.norm", "InstanceNorm2d",
    ),
    "norm folded by hand": (
        cbam, replace_layer("spatial.norm", lambda _: nn.Identity()), "spatial.norm", r"Identity\(\)"
    ),
    "dilated": (
        cbam, replace_layer("spatial.conv", conv_like(padding=2, dilation=2)), "spatial.conv", "Conv2d.*dilation"
    ),
    "circular": (
        cbam, replace_layer("spatial.conv", conv_like(padding=1, padding_mode="circular")), "spatial.conv",
        "Conv2d.*circular"
    ),
    "no padding": (cbam, set_attributes("spatial.conv", padding=(0, 0)), "spatial.conv", r"Conv2d\(2, 1, kernel_size"),
    "a subclass with another forward": (
        cbam, replace_layer("channel.excite", lambda linear: Doubled(linear.in_features, linear.out_features)),
        "channel.excite",
        "Doubled"
    ),
    "a sequence": (
        cbam, lambda block: setattr(block.channel, "excite", nn.Sequential(block.channel.excite, nn.Tanh())),
        "channel.excite", "Sequential",
    ),
    "another part": (
        cbam, lambda block: setattr(block, "channel", attzoo.create("se", 8, reduced_channels=3, backend="torch")),
        "channel", "SE",
    ),
    "an additional layer": (cbam, lambda block: block.add_module("after", nn.Dropout(0.5)), "after", r"Dropout\(p=0.5"),
    "a forward of a layer": (
        cbam, replace_method("channel.excite", "forward"), "channel.excite", "one whose forward was"
    ),
    "a forward of the block": (cbam, replace_method("", "forward"), "the block", "one whose forward was replaced"),
    "an attention of a part": (
        cbam, replace_method("spatial", "attention"), "spatial", "one whose attention was replaced"
    ),
    "another activation inside": (
        unet, lambda net: change_units(net.encoder[0], activation=None), "encoder.0", "Units.*conv1: None, dropout=0.1"
    ),
    "another forward": (lambda: randomized(Residual(8)), lambda block: None, "the block", "Residual"),
    "another attention": (lambda: randomized(Sharper(8)), lambda block: None, "the block", "Sharper"),
    "eps of a gate": (unet, set_attributes("skip.0.psi_norm", eps=1e-3), "skip.0.psi_norm", ".*eps=0.001"),
    "eps of a level": (unet, set_attributes("encoder.1.norm2", eps=1e-3), "encoder.1.norm2", ".*eps=0.001"),
    "another slope": (
        unet, replace_layer("decoder.0.activation1", lambda _: nn.LeakyReLU(0.2)), "decoder.0.activation1", "LeakyReLU"
    ),
    "output padding": (
        unet, set_attributes("up.0.transpose", output_padding=(1, 1)), "up.0.transpose", "ConvTranspose2d"
    ),
    "a frozen norm of another library": (
        unet, replace_layer("encoder.0.norm1", lambda n: FrozenBatchNorm2d(n.num_features)), "encoder.0.norm1",
        "FrozenBatch"
    ),
}  # fmt: skip


class FrozenBatchNorm2d(nn.Module):
    """Like torchvision's: the running statistics are not updated."""

    def __init__(self, features):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(features))


@pytest.mark.parametrize("case", CHANGES)
def test_block_with_a_changed_layer_is_not_written(case, tmp_path):
    assert_refused_after_change(CHANGES[case], tmp_path)


def test_error_names_a_gate_with_other_channels(tmp_path):
    net = unet()
    net.skip["0"] = attzoo.create("attention_gate", 4, 5, norm=True, backend="torch")
    assert_refused(net, "skip.0", r"AttentionGate\(channels=4, gating_channels=5", tmp_path)


def test_error_names_a_norm_without_running_statistics():
    block = cbam()
    block.spatial.norm = nn.GroupNorm(1, 1)
    message = r"expected spatial\.norm\.mean of CBAM as its class creates it, a floating-point array, got "
    for function in (attzoo.weights, lambda block: attzoo.load_weights(block, attzoo.weights(cbam()))):
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
        """Append x to the log."""
        self.log.append(x)


def compile_one_layer(block):
    """Replace the first layer of a block by the module that torch.compile returns for it, and return the block."""
    name, layer = next(iter(block.named_children()))
    setattr(block, name, torch.compile(layer, backend="eager"))
    return block


UNCHANGED = {   # changes that do not affect what a block computes
    "frozen": lambda block: block.eval().requires_grad_(False),
    "training": lambda block: block.train(),
    "channels last": lambda block: block.to(memory_format=torch.channels_last),
    "copied": copy.deepcopy,
    "pickled": lambda block: pickle.loads(pickle.dumps(block)),
    "compiled": lambda block: torch.compile(block, backend="eager"),
    "synchronised": nn.SyncBatchNorm.convert_sync_batchnorm,
    "hooks": lambda block: block.register_forward_hook(lambda *args: None) and block,
    "float64": lambda block: block.double(),
    "never in training": lambda block: [setattr(module, "train", module.eval) for module in block.modules()] and block,
    "one layer wrapped by torch.compile": compile_one_layer,
    "its layers compiled": lambda block: [module.compile(backend="eager") for module in block.modules()] and block,
}


@pytest.mark.parametrize("create_block", [cbam, unet])
@pytest.mark.parametrize("case", UNCHANGED)
def test_block_with_unchanged_computation_is_written(case, create_block, tmp_path):
    block = UNCHANGED[case](create_block())
    attzoo.save(block, tmp_path / "a.safetensors")
    assert have_equal_arrays(
        attzoo.weights(attzoo.load(tmp_path / "a.safetensors", backend="torch")), attzoo.weights(block)
    )


def test_subclass_with_unchanged_computation_is_written(tmp_path):
    block = randomized(Logged(8, norm=True))
    attzoo.save(block, tmp_path / "a.safetensors")
    assert have_equal_arrays(
        attzoo.weights(attzoo.load(tmp_path / "a.safetensors", backend="torch")), attzoo.weights(block)
    )


def test_saving_does_not_change_random_states(tmp_path):
    for backend in ("torch", "keras"):
        for block in (cbam(backend), unet(backend)):
            keras.utils.set_random_seed(0)
            rng_state_before = torch.get_rng_state(), random.getstate()
            attzoo.save(block, tmp_path / "a.safetensors")
            assert torch.equal(torch.get_rng_state(), rng_state_before[0])
            assert random.getstate() == rng_state_before[1]


# ---- arrays that layers of torch compute -----------------------------------------------------------------


def deprecated(function):
    """Return a function that calls a deprecated function of torch.nn.utils."""

    def change(layer):
        with pytest.warns(FutureWarning) if function is nn.utils.weight_norm else nullcontext():
            function(layer)

    return change


class Positive(nn.Module):
    def forward(self, weight):
        return weight.abs() + 1


def pruned_twice(layer):
    """Prune a weight with two methods."""
    prune.l1_unstructured(layer, "weight", 0.4)
    prune.random_structured(layer, "weight", 0.3, dim=0)


COMPUTED = {   # function that makes a layer compute its weight, and the remedy in the error
    "weight norm": (parametrizations.weight_norm, r"remove_parametrizations\(block.channel.squeeze, 'weight'\) first"),
    "spectral norm": (parametrizations.spectral_norm, "_SpectralNorm.*torch.nn.utils.parametrize.remove_parametrizati"),
    "orthogonal": (parametrizations.orthogonal, "_Orthogonal.*torch.nn.utils.parametrize.remove_parametrizations"),
    "custom": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Positive()), "Positive.*remove_parametriz",
    ),
    "two parametrizations": (
        lambda layer: (
            parametrizations.weight_norm(layer), parametrize.register_parametrization(layer, "weight", Positive()),
        ),
        "_WeightNorm, Positive",
    ),
    "old weight norm": (deprecated(nn.utils.weight_norm), r"torch.nn.utils.remove_weight_norm\(block.channel.squeeze"),
    "old spectral norm": (deprecated(nn.utils.spectral_norm), "torch.nn.utils.remove_spectral_norm"),
    "pruned": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"torch.nn.utils.prune.remove\(block.channel.squ",
    ),
    "pruned twice": (pruned_twice, "PruningContainer.*torch.nn.utils.prune.remove"),
    "an attribute": (lambda linear: attribute(linear), "make block.channel.squeeze.weight a parameter first"),
    "expanded": (lambda linear: expanded(linear), r"= torch.nn.Parameter\(tensor.clone\(\)\) first"),
}   # fmt: skip


def attribute(layer):
    """Make the weight a tensor that is no parameter."""
    weight = layer.weight.detach().clone()
    del layer.weight
    layer.weight = weight


def expanded(layer):
    """Make the weight a tensor whose rows share memory."""
    layer.weight = nn.Parameter(torch.rand(1, 8).expand(3, 8))


@pytest.mark.parametrize("case", COMPUTED)
def test_computed_weights_are_read_but_not_written(case, tmp_path):
    change, remedy = COMPUTED[case]
    arrays, block = attzoo.weights(cbam()), cbam()
    change(block.channel.squeeze)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.3)
    block.train()
    x = torch.rand(2, 8, 5, 5)
    if case not in ("an attribute", "expanded"):   # the attribute then has the value of the latest call
        block(x).sum().backward()
        optimizer.step()
    state = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    read_arrays = attzoo.weights(block)
    message = rf"expected channel\.squeeze\.weight of CBAM to be stored, .*, got an array that .*{remedy}"
    with pytest.raises(ValueError, match=message):
        attzoo.load_weights(block, arrays)
    attzoo.save(block, tmp_path / "a.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in block.state_dict().items())
    assert all(module.training for module in block.modules())
    block.eval()
    with torch.no_grad():
        y = block(x)
        for twin in (attzoo.load(tmp_path / "a.safetensors", backend="torch"), attzoo.convert(block, backend="torch")):
            torch.testing.assert_close(twin.eval()(x), y, rtol=1e-5, atol=1e-6)
            assert have_equal_arrays(attzoo.weights(twin), read_arrays)


@pytest.mark.parametrize("case", [case for case in COMPUTED if case not in ("an attribute", "expanded")])
def test_remedy_in_the_error_works(case):
    change, _ = COMPUTED[case]
    arrays, block = attzoo.weights(cbam()), cbam()
    change(block.channel.squeeze)
    with pytest.raises(ValueError, match=r"first$") as error:
        attzoo.load_weights(block, arrays)
    exec(str(error.value).split("computes: ")[1].removesuffix(" first"), {"torch": torch, "block": block})
    attzoo.load_weights(block, arrays)
    assert have_equal_arrays(attzoo.weights(block), arrays)


def test_error_names_a_pruned_bias_in_a_network():
    net, arrays = unet(), attzoo.weights(unet())
    weights_before = attzoo.weights(net)
    prune.l1_unstructured(net.skip["0"].gating, "bias", 1)
    with pytest.raises(ValueError, match=r"expected skip\.0\.gating\.bias of UNet to be stored"):
        attzoo.load_weights(net, arrays)
    read_arrays = attzoo.weights(net)
    assert np.count_nonzero(read_arrays.pop("skip.0.gating.bias") == 0) == 1
    weights_before.pop("skip.0.gating.bias")
    assert have_equal_arrays(read_arrays, weights_before)


def test_arrays_that_share_memory_are_not_written():
    block = attzoo.create("se", 4, reduced_channels=4, backend="torch")
    block.excite.weight = block.squeeze.weight
    weights_before = attzoo.weights(block)
    arrays = {name: RNG.random(array.shape, "f4") for name, array in weights_before.items()}
    fix = "it shares memory with another array, so give each its own"
    message = rf"^expected squeeze\.weight to hold the array written to it, got other numbers: {fix}$"
    with pytest.raises(ValueError, match=message):
        attzoo.load_weights(block, arrays)
    assert have_equal_arrays(attzoo.weights(block), weights_before)
    tied = arrays | {"excite.weight": arrays["squeeze.weight"]}
    attzoo.load_weights(block, tied)
    assert have_equal_arrays(attzoo.weights(block), tied)


def test_block_on_the_meta_device_is_neither_read_nor_written():
    with torch.device("meta"):
        block = attzoo.create("eca", 8, backend="torch")
    for function in (attzoo.weights, lambda block: attzoo.load_weights(block, {"conv.weight": np.ones(3, "f4")})):
        with pytest.raises(ValueError, match=r"conv\.weight of ECA .*meta device: call block\.to_empty"):
            function(block)


def test_sharded_tensor_is_neither_read_nor_written():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        block = cbam()
        arrays = attzoo.weights(block)
        fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
        for function in (attzoo.weights, lambda block: attzoo.load_weights(block, arrays)):
            with pytest.raises(ValueError, match=r"got a part of a sharded tensor: call block\.unshard\(\) first"):
                function(block)
        block.unshard()
        assert have_equal_arrays(attzoo.weights(block), arrays)
    finally:
        distributed.destroy_process_group()


def test_integer_weights_are_not_read():
    block = cbam()
    integers = torch.randint(-99, 99, (3, 8), dtype=torch.int8)
    block.channel.squeeze.weight = nn.Parameter(integers, requires_grad=False)
    with pytest.raises(ValueError, match=r"channel\.squeeze\.weight of CBAM as its class .* got torch\.int8"):
        attzoo.weights(block)


class Transposed(nn.Module):
    """Like Conv1D of transformers: a linear layer whose weight has shape (in, out)."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = nn.Parameter(linear.weight.detach().t().contiguous()), linear.bias

    def forward(self, x):
        return x @ self.weight + self.bias


class Adapted(nn.Module):
    """Like a LoRA layer of peft: its weight is that of the layer inside, but it computes more."""

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


class AdaptedLinear(nn.Linear):
    """Like a LoRA layer of loralib: a linear layer whose output has a further term."""

    def __init__(self, linear):
        super().__init__(8, 3)
        self.lora_a, self.lora_b = nn.Parameter(torch.rand(1, 8)), nn.Parameter(torch.rand(3, 1))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T


def quantized_in_training(linear):
    """Add the attribute of layers in quantisation-aware training."""
    linear.weight_fake_quant = nn.Identity()
    return linear


@pytest.mark.parametrize(("create_layer", "message"), [
    (Transposed, r"shape \(8, 3\), not \(3, 8\)"),
    (Adapted, "a layer of class Adapted whose output also depends on arrays that the block's class does not"),
    (AdaptedLinear, "a layer of class AdaptedLinear whose output also depends on"),
    (quantized_in_training, "a layer of class Linear whose output also depends on"),
    (lambda linear: nn.LazyLinear(3), "LazyLinear creates at its first call"),
    (lambda linear: torch.ao.nn.quantized.dynamic.Linear(8, 3), "quantized values of Linear: read the weights before"),
    (lambda linear: linear.to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn"),
])   # fmt: skip
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore:.*quantiz")
def test_arrays_that_a_layer_does_not_use_are_neither_read_nor_written(create_layer, message):
    block = cbam()
    arrays = attzoo.weights(block)
    block.channel.squeeze = create_layer(block.channel.squeeze)
    for function in (attzoo.weights, lambda block: attzoo.load_weights(block, arrays)):
        with pytest.raises(ValueError, match=rf"channel\.squeeze\.\w+ of CBAM as its class .*, got .*{message}"):
            function(block)


def test_1x1_convolution_is_read_as_a_matrix():
    block = attzoo.create("se", 8, reduced_channels=3, backend="torch")
    arrays = attzoo.weights(block)
    conv = nn.Conv2d(8, 3, 1)
    conv.load_state_dict({"weight": block.squeeze.weight[..., None, None], "bias": block.squeeze.bias})
    block.squeeze = conv
    assert have_equal_arrays(attzoo.weights(block), arrays)


def test_blocks_created_in_inference_mode_are_written_only_there():
    with torch.inference_mode():
        block = cbam()
        arrays = attzoo.weights(block)
        attzoo.load_weights(block, arrays)
    with pytest.raises(ValueError, match=r"an array that torch\.inference_mode computes: create the block outside"):
        attzoo.load_weights(block, arrays)


def test_load_on_the_meta_device_raises(tmp_path):
    attzoo.save(cbam(), tmp_path / "a.safetensors")
    with torch.device("meta"), pytest.raises(ValueError, match="got the meta device: leave"):
        attzoo.load(tmp_path / "a.safetensors", backend="torch")


# ---- arrays of several dtypes ----------------------------------------------------------------------


def mixed(backend):
    """Return a block with some arrays in float16 and others in float32."""
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
def test_values_must_fit_the_dtype_of_their_array(backend, value):
    block = mixed(backend)
    weights_before = attzoo.weights(block)
    arrays = weights_before | {"channel.squeeze.weight": np.full((3, 8), value, "f4")}
    with pytest.raises(ValueError, match=r"must be exact in float16, the block's dtype, got float32: round"):
        attzoo.load_weights(block, arrays)
    assert have_equal_arrays(attzoo.weights(block), weights_before)
    attzoo.load_weights(block, weights_before)


CHECK = """
import sys
import attzoo
from attzoo import testing
try:
    attzoo.load(sys.argv[1], backend="keras")
except ValueError as err:
    print(err)
for contract in (testing.outputs, testing.gradients, testing.training, testing.files):
    for case in list(testing.CONTRACTS[contract]("eca", 0))[:2]:
        contract(case, "keras")
print("pass")
"""


def test_jax_without_float64_refuses_float64_files_and_satisfies_the_contracts(tmp_path):
    if not find_spec("jax"):
        pytest.skip("JAX is not installed")
    path = tmp_path / "a.safetensors"
    attzoo.save(attzoo.create("eca", 8, backend="torch", dtype=torch.float64), path)
    env = os.environ | {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "0"}
    command = [sys.executable, "-c", CHECK, path]
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    refusal, passed = process.stdout.splitlines()
    assert "expected conv.weight in float64, the dtype of its block, got float32" in refusal
    assert "JAX_ENABLE_X64=1" in refusal
    assert passed == "pass"


# ---- Keras -----------------------------------------------------------------------------------------


def unbuilt(backend="keras"):
    """Return a CBAM that is not built."""
    return attzoo.create("cbam", 8, reduced_channels=3, kernel_size=3, norm=True, backend="keras")


def keras_unet():
    """Return a Keras U-Net."""
    return unet("keras", up="nearest")


def layer_of(net, path):
    """Return the layer with this canonical path."""
    return next(layer for layer in net.layers if getattr(layer, "canonical", None) == path)


def replace_keras_method(path, name):
    """Return a function that replaces a method of a layer by one that returns twice its result."""

    def change(block):
        part = getattr(block, path) if path else block
        method = getattr(part, name)
        object.__setattr__(part, name, lambda *args, **kwargs: 2 * method(*args, **kwargs))

    return change


KERAS_CHANGES = {   # as CHANGES
    "a call of an instance": (
        lambda: cbam("keras"), replace_keras_method("", "call"), "the block", "one whose call was"
    ),
    "an attention of an instance": (
        lambda: cbam("keras"), replace_keras_method("spatial", "attention"), "spatial",
        "one whose attention was replaced"
    ),
    "Keras's batch norm": (
        unbuilt, lambda block: setattr(block.spatial, "norm", keras.layers.BatchNormalization(epsilon=1e-3)),
        "spatial.norm", r"BatchNormalization\(.*epsilon=0.001",
    ),
    "group norm": (
        unbuilt, lambda block: setattr(block.spatial, "norm", keras.layers.GroupNormalization(1)),
        "spatial.norm", "GroupNormalization",
    ),
    "an activation": (
        unbuilt, lambda block: setattr(block.channel.squeeze, "activation", keras.activations.tanh),
        "channel.squeeze", r"Dense\(units=3, activation='tanh'",
    ),
    "an activation, later": (
        lambda: cbam("keras"), lambda block: setattr(block.channel.excite, "activation", keras.activations.relu),
        "channel.excite", "Dense.*'relu'",
    ),
    "no bias": (
        unbuilt, lambda block: setattr(block.channel.squeeze, "use_bias", False), "channel.squeeze", ".*use_bias=False"
    ),
    "circular": (
        unbuilt, lambda block: setattr(block.spatial.conv, "mode", "circular"), "spatial.conv", "Conv.*circular",
    ),
    "an additional layer": (
        unbuilt, lambda block: setattr(block, "after", keras.layers.Dropout(0.5)), "after", "Dropout.*rate=0.5"
    ),
    "dropout of a network": (
        keras_unet, lambda block: setattr(layer_of(block, "encoder.0.dropout1"), "rate", 0.5),
        "encoder.0.dropout1", "Dropout.*rate=0.5",
    ),
    "dilation of a network": (
        keras_unet, lambda block: setattr(layer_of(block, "encoder.1.conv2"), "dilation_rate", (2, 2)),
        "encoder.1.conv2", "Conv2D.*dilation_rate=.2, 2",
    ),
    "resampling of a network": (
        keras_unet, lambda block: setattr(layer_of(block, "up.0.nearest"), "interpolation", "bilinear"),
        "up.0.nearest", "UpSampling2D.*bilinear",
    ),
    "a gate of a network": (
        keras_unet, lambda block: setattr(layer_of(block, "skip.0").psi, "activation", keras.activations.relu),
        "skip.0.psi", "Dense.*relu",
    ),
    "a relu of a network": (
        keras_unet, lambda block: setattr(layer_of(block, "encoder.0.relu1"), "call", keras.ops.tanh),
        "encoder.0.relu1", "one whose call was replaced",
    ),
    "a call of a network": (keras_unet, replace_keras_method("", "call"), "the block", "one whose call was replaced"),
}   # fmt: skip


@pytest.mark.parametrize("case", KERAS_CHANGES)
def test_keras_block_with_a_changed_layer_is_not_written(case, tmp_path):
    assert_refused_after_change(KERAS_CHANGES[case], tmp_path)


def test_keras_subclass_with_another_call_is_not_written(tmp_path):
    class Doubled(attzoo.get("cbam", backend="keras")):
        def call(self, x, training=None):
            return 2 * super().call(x, training)

    assert_refused(Doubled(8), "the block", "Doubled", tmp_path)


@pytest.mark.parametrize("case", ["frozen", "named", "regularised", "mixed", "saved by Keras"])
def test_keras_block_with_unchanged_computation_is_written(case, tmp_path):
    options = {"named": {"name": "mine"}, "mixed": {"dtype": "mixed_float16"}}.get(case, {})
    for block in (cbam("keras", **options), unet("keras", **options)):
        if case == "frozen":
            block.trainable = False
        elif case == "regularised" and hasattr(block, "channel"):
            block.channel.squeeze.kernel_regularizer = keras.regularizers.L2(0.1)
        elif case == "saved by Keras" and isinstance(block, keras.Model):
            block.save(tmp_path / "a.keras")
            block = keras.models.load_model(tmp_path / "a.keras")
        attzoo.save(block, tmp_path / "a.safetensors")
        assert have_equal_arrays(
            attzoo.weights(attzoo.load(tmp_path / "a.safetensors", backend="torch")), attzoo.weights(block)
        )


def test_keras_lora_is_read_merged_and_not_written(tmp_path):
    block, x = cbam("keras"), RNG.random((2, 5, 5, 8), "f4")
    plain = attzoo.weights(block)
    block.channel.squeeze.enable_lora(2)
    block.channel.squeeze.lora_kernel_b.assign(RNG.random((2, 3), "f4"))
    read_arrays = attzoo.weights(block)
    assert not have_equal_arrays(read_arrays, plain)
    with pytest.raises(ValueError, match=r"channel\.squeeze\.weight of CBAM to be stored, .* array that LoRA computes"):
        attzoo.load_weights(block, plain)
    assert have_equal_arrays(attzoo.weights(block), read_arrays)
    attzoo.save(block, tmp_path / "a.safetensors")
    loaded = attzoo.load(tmp_path / "a.safetensors", backend="keras")
    assert have_equal_arrays(attzoo.weights(loaded), read_arrays)
    np.testing.assert_allclose(loaded(x), block(x), rtol=1e-5, atol=1e-6)


def test_wrapped_keras_layer_is_not_written():
    block = attzoo.create("se", 8, reduced_channels=3, bias=False, backend="keras")
    block.squeeze = keras.layers.SpectralNormalization(block.squeeze)
    block(np.ones((1, 4, 4, 8), "f4"))
    arrays = attzoo.weights(block)
    with pytest.raises(ValueError, match=r"squeeze\.weight of SE to be stored, .* got an array that SpectralNormali"):
        attzoo.load_weights(block, arrays)


def test_transposed_keras_weight_is_not_read():
    class Rows(keras.layers.Layer):
        def build(self, shape):
            self.weight = self.add_weight(shape=(8, 3))

    block = attzoo.create("se", 8, reduced_channels=3, bias=False, backend="keras")
    block.squeeze = Rows()
    with pytest.raises(ValueError, match=r"squeeze\.weight of SE as its class .* got shape \(8, 3\), not \(3, 8\)"):
        attzoo.weights(block)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantized_keras_layers_are_not_read(mode, tmp_path):
    block, arrays = attzoo.create("se", 8, reduced_channels=4, backend="keras"), None
    arrays = attzoo.weights(block)
    block.squeeze.quantize(mode)
    for function in (
        attzoo.weights,
        lambda block: attzoo.load_weights(block, arrays),
        lambda block: attzoo.save(block, tmp_path / "a.safetensors"),
        lambda block: attzoo.convert(block, backend="torch"),
    ):
        with pytest.raises(ValueError, match=rf"squeeze\.weight of SE .*by Keras \({mode}\).*before quantize"):
            function(block)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantized_keras_network_is_not_read():
    net = keras_unet()
    net.quantize("int8")
    with pytest.raises(ValueError, match=r"of UNet as its class .* got values quantized by Keras \(int8\)"):
        attzoo.weights(net)
