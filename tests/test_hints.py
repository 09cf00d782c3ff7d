"""Errors about names, arguments, choices and layouts propose a correction."""

import re

import numpy as np
import pytest
import torch

import attzoo
from attzoo import cli, registry
from attzoo.train import Settings

every_backend = pytest.mark.parametrize("backend", ["numpy", "torch", "keras"])


def zeros(shape, backend):
    """Return zeros as a tensor or array that the backend accepts."""
    return torch.zeros(shape) if backend == "torch" else np.zeros(shape, np.float32)


# ---- arguments -------------------------------------------------------------------------------------

ARGUMENTS = [
    ("se", (8,), "ratio", "reduction"),
    ("se", (8,), "bais", "bias"),
    ("cbam", (8,), "kernal_size", "kernel_size"),
    ("channel_attention", (8,), "reduction_ratio", "reduction"),
    ("spatial_attention", (8,), "kernel", "kernel_size"),
    ("eca", (8,), "k_size", "kernel_size"),
    ("se", (8,), "rd_channels", "reduced_channels"),
    ("attention_gate", (8, 4), "F_int", "inter_channels"),
    ("attention_gate", (8, 4), "inter_chanels", "inter_channels"),
    ("unet", (1, 2), "normalise", "norm"),
    ("unet", (1, 2), "deep_supervison", "deep_supervision"),
]


@pytest.mark.parametrize(("name", "args", "wrong", "right"), ARGUMENTS)
@every_backend
def test_an_unknown_argument_gets_the_nearest_name(name, args, wrong, right, backend):
    cls = attzoo.get(name, backend=backend)
    error = rf"^{cls.__name__} takes no argument '{wrong}'; did you mean '{right}'\? It takes: .*\b{right}\b"
    for create_block in (cls, lambda *a, **k: attzoo.create(name, *a, backend=backend, **k)):
        with pytest.raises(TypeError, match=error):
            create_block(*args, **{wrong: 1})


@every_backend
def test_unknown_argument_beside_a_variant_raises(backend):
    with pytest.raises(TypeError, match="SE takes no argument 'ratio'; did you mean 'reduction'"):
        attzoo.create("se", 8, backend=backend, variant="timm", ratio=4)


@pytest.mark.parametrize(("name", "args"), [("se", (8,)), ("unet", (1, 2))])
def test_arguments_of_keras_layers_are_accepted_and_proposed(name, args):
    for wrong, right in (("data_fromat", "data_format"), ("dtpye", "dtype"), ("nmae", "name")):
        with pytest.raises(TypeError, match=f"takes no argument '{wrong}'; did you mean '{right}'"):
            attzoo.create(name, *args, backend="keras", **{wrong: "x"})
    block = attzoo.create(name, *args, backend="keras", name="x", trainable=False, dtype="float16")
    assert (block.name, block.trainable, block.compute_dtype) == ("x", False, "float16")


def test_error_for_a_dissimilar_argument_proposes_none():
    with pytest.raises(TypeError, match=r"SE takes no argument 'qqq'. It takes: channels, reduction"):
        attzoo.create("se", 8, backend="torch", qqq=1)


def test_unknown_options_of_networks_and_settings_raise():
    with pytest.raises(ValueError, match=r"se has no option 'ratio'; did you mean 'reduction'\? Known: reduction"):
        attzoo.create("unet", 1, 2, backend="torch", block="se", block_options={"ratio": 4})
    with pytest.raises(TypeError, match="Settings takes no argument 'epoch'; did you mean 'epochs'"):
        Settings(epoch=3)


def test_subclass_may_have_additional_arguments():
    class Extended(attzoo.get("se", backend="torch")):
        def __init__(self, channels, extra):
            super().__init__(channels)
            self.extra = extra

    assert Extended(8, extra=2).extra == 2
    with pytest.raises(TypeError, match="Extended takes no argument 'extr'; did you mean 'extra'"):
        Extended(8, extr=2)


# ---- names and choices -----------------------------------------------------------------------------


KERAS_BACKEND_NAMES = [("tensorflow", "tensorflow"), ("TF", "tensorflow"), ("jax", "jax")]


@pytest.mark.parametrize(("name", "keras_backend"), KERAS_BACKEND_NAMES)
def test_error_for_a_keras_backend_names_the_environment_variable(name, keras_backend):
    error = f'unknown backend .*; it is a backend of Keras: give backend="keras" and set KERAS_BACKEND={keras_backend} '
    for lookup in (attzoo.get, attzoo.create):
        with pytest.raises(ValueError, match=error):
            lookup("se", backend=name)


CHOICES = [
    (lambda: attzoo.create("se", 8, backend="torch", gate="sigmiod"), "sigmoid"),
    (lambda: attzoo.create("eca", 8, backend="torch", padding="zero"), "zeros"),
    (lambda: attzoo.create("attention_gate", 8, 4, backend="torch", interpolation="bilinear"), "linear"),
    (lambda: attzoo.create("unet", 1, 2, backend="torch", down="maxpool"), "max_pool"),
    (lambda: attzoo.create("unet", 1, 2, backend="torch", skip="atention_gate"), "attention_gate"),
    (lambda: attzoo.create("se", 8, backend="keras", data_format="channel_last"), "channels_last"),
    (lambda: attzoo.kernels("tritn"), "triton"),
    (lambda: Settings(loss="dise"), "dice"),
    (lambda: Settings(optimizer="adamW"), "adamw"),
]


@pytest.mark.parametrize(("call", "right"), CHOICES, ids=[right for _, right in CHOICES])
def test_error_for_an_unknown_choice_proposes_the_nearest(call, right):
    with pytest.raises(ValueError, match=rf"got .*; did you mean '{right}'\?|'; did you mean '{right}'\? Known: "):
        call()


@pytest.mark.parametrize(("arguments", "hint"), [
    (("check", "cbma"), "did you mean 'cbam'?"),
    (("info", "unte"), "did you mean 'unet'?"),
    (("train", "--recipe", "camvdi"), "did you mean 'camvid'?"),
    (("train", "--loss", "dise"), "did you mean 'dice'?"),
    (("train", "--variant", "onkay"), "did you mean 'oktay'?"),
    (("train", "--net", "nomr=batch"), "did you mean 'norm'?"),
    (("train", "--backend", "tensorflow"), 'backend="keras" and set KERAS_BACKEND=tensorflow'),
    (("check", "se", "--backend", "trch"), "did you mean 'torch'?"),
    (("predict", "a", "b", "--backend", "kreas"), "did you mean 'keras'?"),
    (("convert", "a.safetensors", "b.kears"), "did you mean '.keras'?"),
    (("chekc",), "Did you mean 'check'?"),
    (("train", "--epoch", "3"), "--epochs"),
])   # fmt: skip
def test_errors_of_the_command_line_propose_a_correction(arguments, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert hint in str(exit_info.value.code) + capsys.readouterr().err


def test_known_name_accepts_an_enum_of_strings():
    assert registry.known_name("backend", "torch", cli.shared.Backend) == "torch"
    with pytest.raises(ValueError, match="did you mean 'torch'"):
        registry.known_name("backend", "trch", cli.shared.Backend)


# ---- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "args", "shapes"), [
    ("se", (8,), [(2, 16, 16, 8)]),
    ("spatial_attention", (3,), [(1, 5, 6, 3)]),
    ("attention_gate", (4, 6), [(1, 8, 8, 4), (1, 4, 4, 6)]),
    ("unet", (3, 2, (4, 8)), [(1, 16, 16, 3)]),
    ("eca", (8,), [(2, 16, 8)]),
])   # fmt: skip
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_error_names_channels_last_input(name, args, shapes, backend):
    block = attzoo.create(name, *args, backend=backend)
    with pytest.raises(ValueError, match=r"which is channels last: .*x\.movedim\(-1, 1\)"):
        block(*(zeros(shape, backend) for shape in shapes), **({"weights": {}} if backend == "numpy" else {}))


@pytest.mark.parametrize(("name", "args", "shape"), [("se", (8,), (2, 8, 16, 16)), ("cbam", (4,), (1, 4, 5, 6))])
def test_error_names_channels_first_input_in_keras(name, args, shape):
    with pytest.raises(ValueError, match="which is channels first: set data_format='channels_first'"):
        attzoo.create(name, *args, backend="keras")(zeros(shape, "keras"))


@pytest.mark.parametrize("shape", [(2, 8, 0, 16), (2, 7, 16, 16), (2, 8, 16, 16, 8, 8), (8, 8)])
def test_error_for_other_shapes_does_not_name_a_layout(shape):
    with pytest.raises(ValueError, match="expected") as caught:
        attzoo.create("se", 8, backend="torch")(torch.zeros(shape))
    assert "channels last" not in str(caught.value)


# ---- batch norm on one value per channel -----------------------------------------------------------

ONE_VALUE = [
    ("unet", (3, 2, (4, 8)), {}, [(3, 2, 2)]),
    ("spatial_attention", (8,), {"norm": True}, [(8, 1, 1)]),
    ("cbam", (8,), {"norm": True}, [(8, 1, 1)]),
    ("attention_gate", (4, 6), {"norm": True}, [(4, 1, 1), (6, 1, 1)]),
    ("attention_gate", (4, 6), {"output_transform": True}, [(4, 1, 1), (6, 1, 1)]),
]


@pytest.mark.parametrize(("name", "args", "options", "shapes"), ONE_VALUE)
@every_backend
def test_batch_norm_on_one_value_per_channel_raises(name, args, options, shapes, backend):
    block = attzoo.create(name, *args, backend=backend, **options)
    inputs = [np.zeros((1, *shape), np.float32) for shape in shapes]
    kwargs = {"training": True}
    if backend == "numpy":
        kwargs["weights"] = attzoo.weights(attzoo.create(name, *args, backend="torch", **options))
    elif backend == "torch":
        inputs, kwargs = map(torch.from_numpy, inputs), {}
    else:
        inputs = [np.moveaxis(x, 1, -1) for x in inputs]
    error = "expected more than 1 value per channel in training .*, got .*: give a larger batch .* another norm"
    with pytest.raises(ValueError, match=error):
        block(*inputs, **kwargs)


def test_frozen_norms_and_two_values_per_channel_do_not_raise():
    net = attzoo.create("unet", 3, 2, (4, 8), backend="torch")
    net(torch.zeros(2, 3, 2, 2))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    net(torch.zeros(1, 3, 2, 2))


def test_error_inside_keras_is_printed_as_one_line():
    block = attzoo.create("spatial_attention", 8, norm=True, backend="keras")
    with pytest.raises(ValueError, match="more than 1 value") as caught:
        block(np.zeros((1, 1, 1, 8), np.float32), training=True)
    assert "\x1b" in str(caught.value)   # otherwise this test would check nothing
    line = cli.shared.one_line(caught.value)
    assert line.startswith("expected more than 1 value per channel")
    assert line.isprintable()
    assert "Arguments received" not in line


def test_terminal_codes_are_removed_from_errors():
    assert cli.shared.one_line(ValueError("a \x1b[31mred\x1b[0m\n word")) == "a red word"
    assert not re.search(r"\x1b", cli.shared.one_line(RuntimeError("\x1b[1mbold\x1b[0m")))
