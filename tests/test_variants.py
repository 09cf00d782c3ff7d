"""Published variants equal the descriptions of their sources in tests/blocks."""

import re

import numpy as np
import pytest
import torch
from block_files import FILES, table
from published import create

import attzoo
from attzoo import registry
from attzoo.contract import by_name

VARIANTS = {(block, name): row for block in registry.BLOCKS for name, row in registry.variants(block).items()}
PUBLISHED = table("PUBLISHED")
DESCRIBED = [key for key in VARIANTS if key in PUBLISHED]   # the first test below fails for missing ones


def channels_of(block, channels=64):
    """Return the channels of each input: at least `channels`, as many as the block's defaults accept, and 32."""
    return attzoo.info(block).at_least(channels), 32


every_variant = pytest.mark.parametrize(("block", "variant"), DESCRIBED, ids=map(":".join, DESCRIBED))


@pytest.mark.parametrize("block", registry.BLOCKS)
def test_every_block_has_a_test_file_with_its_variants(block):
    path = f"tests/blocks/test_{block}.py"
    assert block in FILES, f"expected {path} with numbers worked out by hand and PUBLISHED, got no such file"
    tests = [name for name in vars(FILES[block]) if name.startswith("test_")]
    assert tests, f"expected tests of numbers worked out by hand in {path}, got none"
    arrays = getattr(FILES[block], "ARRAYS", {})
    assert "" in arrays, f'expected ARRAYS = {{"": (arguments, names and shapes of arrays)}} in {path}, got {arrays}'
    registered, actual = set(registry.variants(block)), {variant for name, variant in PUBLISHED if name == block}
    assert actual == registered, (
        f"{path}: PUBLISHED lacks {sorted(registered - actual)}, and states unknown {sorted(actual - registered)}"
    )


# ---- arguments -------------------------------------------------------------------------------------------------------


@every_variant
def test_variant_has_the_sizes_of_its_source(block, variant):
    for channels, expected in PUBLISHED[block, variant].sizes.items():
        spec = create(block, variant, channels)
        assert {name: getattr(spec, name) for name in expected} == expected, channels


@every_variant
def test_variant_has_the_arrays_of_its_source(block, variant):
    assert set(create(block, variant, channels_of(block)).weights) == set(PUBLISHED[block, variant].arrays)


@pytest.mark.case4
@pytest.mark.parametrize("key", VARIANTS, ids=":".join)
def test_coefficients_depend_on_x_with_few_channels(key):
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 5):
        if channels % 2 and getattr(create(*key, channels_of(key[0])), "split", False):
            continue   # two paths need an even number
        spec = create(*key, channels_of(key[0], channels))
        weights = {name: rng.uniform(0.05, 0.15, weight.shape) for name, weight in spec.weights.items()}
        inputs = ([rng.uniform(0.1, 0.5, (1, c, 4, 4)) for c in spec.inputs] for _ in range(2))
        first, second = (by_name(spec.attention(*xs, weights=weights)) for xs in inputs)
        assert all((first[name] != second[name]).all() for name in first)


@pytest.mark.parametrize("key", VARIANTS, ids=":".join)
def test_source_has_an_arxiv_id_a_commit_or_a_version(key):
    assert re.search(r"arXiv:\d{4}\.\d{5}v\d|\w/[\w.-]+@[0-9a-f]{7}\b|\w \d+\.\d+\.\d+, ", VARIANTS[key].source)


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        (("se", 64), {"variant": "timm", "reduced_channels": 5}, {"reduced_channels": 5}),
        (("se", 256), {"variant": "timm", "reduction": 4}, {"reduced_channels": 64}),
        (("se", 256, 4), {"variant": "timm"}, {"reduced_channels": 64}),
        (("se", 64), {"variant": "paper", "bias": True}, {"bias": True}),
        (("eca", 4), {"variant": "timm", "kernel_size": 1}, {"kernel_size": 1}),
        (("eca", 64), {"variant": "timm", "gamma": 1.0}, {"kernel_size": 7}),
        (("cbam", 40), {"variant": "timm", "kernel_size": 3}, {"kernel_size": 3, "reduced_channels": 3, "norm": True}),
        (("attention_gate", 8, 4), {"variant": "oktay", "stride": 1}, {"stride": [1, 1], "skip_bias": False}),
        (("attention_gate", 8, 4, 7), {"variant": "keras"}, {"inter_channels": 7}),
        (("attention_gate", 8, 4), {"variant": "oktay", "spatial_dims": 3}, {"stride": [2, 2, 2], "inter_channels": 4}),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_explicit_arguments_override_the_variant(backend, arguments, options, expected):
    block = attzoo.create(*arguments, **options, backend=backend)
    config = (block if backend == "numpy" else block.spec).config()
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_variants_have_the_same_spec_in_every_backend(backend):
    for block, variant in VARIANTS:
        expected = create(block, variant, channels_of(block))
        assert create(block, variant, channels_of(block), backend).spec == expected, (block, variant)


@pytest.mark.case119
def test_error_for_an_unknown_variant_proposes_the_nearest():
    with pytest.raises(ValueError, match="unknown variant of se 'tim'; did you mean 'timm'"):
        attzoo.create("se", 64, backend="numpy", variant="tim")
    with pytest.raises(TypeError, match="must be a name, got 3"):
        attzoo.create("se", 64, backend="numpy", variant=3)


# ---- functions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@every_variant
def test_variant_computes_the_same_as_its_source(block, variant, training):
    published = PUBLISHED[block, variant]
    for shapes in published.shapes:
        assert_computes(block, variant, published.function, shapes, training)


def assert_computes(block, variant, function, shapes, training):
    """Assert that outputs and input gradients of block and function agree for random inputs and arrays."""
    rng = np.random.default_rng(0)
    has_spatial_dims = any(argument.name == "spatial_dims" for argument in attzoo.info(block).arguments)
    dims = {"spatial_dims": len(shapes[0]) - 2} if has_spatial_dims else {}
    ours = create(block, variant, [shape[1] for shape in shapes], "torch", **dims).double().train(training)
    arrays = {name: rng.normal(size=weight.shape) for name, weight in ours.spec.weights.items()}
    arrays |= {name: rng.uniform(0.5, 1.5, array.shape) for name, array in arrays.items() if name.endswith(".var")}
    attzoo.load_weights(ours, arrays)
    inputs = [torch.from_numpy(rng.normal(size=shape)).requires_grad_() for shape in shapes]
    actual = ours(*inputs)
    expected = function(*inputs, {name: torch.from_numpy(array) for name, array in arrays.items()}, training)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    cotangent = torch.from_numpy(rng.normal(size=actual.shape))
    gradients, expected_gradients = (torch.autograd.grad(y, inputs, cotangent) for y in (actual, expected))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        scale = max(1.0, expected_gradient.abs().max().item())
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-11 * scale)
