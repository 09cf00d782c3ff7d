"""The losses: each framework's against the formula in NumPy, and the slopes of both against each other."""

import numpy as np
import pytest
import torch

from attzoo.ops.keras import keras
from attzoo.train.losses import ALPHA, BETA, GAMMA, IGNORE
from attzoo.train.losses import keras as of_keras
from attzoo.train.losses import torch as of_torch
from attzoo.train.settings import LOSSES

SHAPES = [(3, 4, 5, 6), (2, 3, 3, 4, 2), (2, 1, 5, 4), (1, 2, 1, 1)]


def formula(name, logits, masks):
    """As attzoo.train.losses has it, in float64, pixel by pixel: logits (N, K, *S), masks (N, *S)."""
    if name == "both":
        return formula("cross_entropy", logits, masks) + formula("dice", logits, masks)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p, q = p / p.sum(1, keepdims=True), 1 / (1 + np.exp(-logits))
    terms = []
    for n, mask in enumerate(masks):
        pixels = [at for at in np.ndindex(mask.shape) if mask[at] != IGNORE]
        if name == "cross_entropy":
            terms += [-np.log(p[(n, mask[at], *at)]) for at in pixels]
            continue
        tables = []   # of each class: what the net says and what is true, per pixel
        for k in range(logits.shape[1]):
            truth = k if logits.shape[1] > 1 else 1
            is_there = np.array([mask[at] == truth for at in pixels], float)
            tables.append((np.array([(q if name == "bce" else p)[(n, k, *at)] for at in pixels]), is_there))
        if name == "bce":
            terms += [v for f, t in tables for v in -t * np.log(f) - (1 - t) * np.log(1 - f)]
        elif pixels and name == "dice":
            terms += [1 - (2 * (f * t).sum() + 1) / (f.sum() + t.sum() + 1) for f, t in tables]
        elif pixels:
            hit = [((f * t).sum() + 1, ((1 - f) * t).sum(), (f * (1 - t)).sum()) for f, t in tables]
            terms += [(1 - tp / (tp + ALPHA * fn + BETA * fp)) ** (1 / GAMMA) for tp, fn, fp in hit]
    return float(np.mean(terms)) if terms else 0.0


def torch_loss(name, logits, masks):
    x = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    value = of_torch.loss(name, x, torch.from_numpy(masks))
    value.backward()
    return value.item(), x.grad.numpy()


def keras_loss(name, logits, masks):
    import tensorflow as tf

    x = tf.constant(np.moveaxis(logits, 1, -1), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = of_keras.loss(name, x, masks)
    return float(value), np.moveaxis(tape.gradient(value, x).numpy(), -1, 1)


def batch(shape, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, max(shape[1], 2), (shape[0], *shape[2:]))
    masks[0][rng.random(masks[0].shape) < 0.3] = IGNORE
    return rng.normal(0, 3, shape), masks


def fits(name, shape):
    return name == "bce" or shape[1] > 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="slopes are taken with TensorFlow's tape")
@pytest.mark.parametrize(("name", "shape"), [(n, s) for n in LOSSES for s in SHAPES if fits(n, s)])
def test_both_frameworks_compute_the_formula(name, shape):
    logits, masks = batch(shape)
    (one, slope), (other, twin) = torch_loss(name, logits, masks), keras_loss(name, logits, masks)
    assert one == pytest.approx(wanted := formula(name, logits, masks), rel=2e-5)
    assert other == pytest.approx(wanted, rel=2e-5)
    np.testing.assert_allclose(slope, twin, rtol=1e-4, atol=1e-7)
    assert not np.moveaxis(slope, 1, -1)[masks == IGNORE].any()
    direction = np.random.default_rng(1).normal(size=shape)
    step = 1e-5 * direction
    difference = (formula(name, logits + step, masks) - formula(name, logits - step, masks)) / 2e-5
    assert (slope * direction).sum() == pytest.approx(difference, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_without_a_pixel_counts_for_nothing(name):
    logits, masks = batch((3, 4, 5, 6))
    masks[1] = IGNORE
    rest = [0, 2]
    for loss in (torch_loss, keras_loss):
        with_it, slope = loss(name, logits, masks)
        without, _ = loss(name, logits[rest], masks[rest])
        assert with_it == pytest.approx(without, rel=1e-6)
        assert not slope[1].any()
        value, slope = loss(name, logits, np.full_like(masks, IGNORE))
        assert value == pytest.approx(0, abs=1e-12)
        assert not slope.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_and_a_hopeless_answer_have_finite_slopes(name):
    masks = np.random.default_rng(0).integers(0, 3, (2, 4, 4))
    right = np.moveaxis(np.eye(3)[masks], -1, 1) * 200 - 100
    for loss in (torch_loss, keras_loss):
        good, slope = loss(name, right, masks)
        bad, steep = loss(name, -right, masks)
        assert good < 1e-4 < 0.5 < bad
        assert np.isfinite(slope).all()
        assert np.isfinite(steep).all()


@pytest.mark.parametrize("name", LOSSES)
def test_halves_of_a_batch_that_share_their_counts_add_up(name):
    logits, masks = batch((4, 3, 5, 6))
    whole = torch_loss(name, logits, masks)[0]

    def counts(part):
        x, y = torch.tensor(logits[part]).float(), torch.tensor(masks[part])
        return [count for _, count in of_torch.LOSSES[name](x, y)]

    parts = [slice(0, 1), slice(1, 4)]
    shares = 0.0
    for part in parts:
        both = iter([sum(pair) for pair in zip(*map(counts, parts), strict=True)])
        x, y = torch.tensor(logits[part]).float(), torch.tensor(masks[part])
        shares += of_torch.loss(name, x, y, lambda _, both=both: next(both)).item()
    assert shares == pytest.approx(whole, rel=1e-6)
