"""The losses: each framework's against the formula in NumPy, and the slopes of both against each other."""

import numpy as np
import pytest
import torch

from attzoo.ops.keras import keras
from attzoo.train.losses import keras as of_keras
from attzoo.train.losses import torch as of_torch
from attzoo.train.settings import LOSSES

IGNORE = 255   # as docs say of masks
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
            terms += [(1 - tp / (tp + 0.7 * fn + 0.3 * fp)) ** 0.75 for tp, fn, fp in hit]   # as the paper has them
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


def by_hand():
    """One image of six pixels and two classes, with the values of its losses as worked out by hand.

    p(class 1) is 0.1, 0.1, 0.3 where class 0 is true, 0.5, 0.5 where class 1 is; the last pixel is ignored.
    Sums, of class 0: sum(p t) = 2.5, missed 0.5, wrong 1.0; of class 1: sum(p t) = 1.0, missed 1.0, wrong 0.5.
    Focal Tversky is eq. 3 and 4 of arXiv:1810.07842v1 with its alpha 0.7 of missed pixels, beta 0.3 of wrong ones and
    gamma 4/3, 1 added to both sides of the fraction and the mean taken over classes:
    TI = 3.5 / (3.5 + 0.35 + 0.3) and 2 / (2 + 0.7 + 0.15).
    """
    p = np.array([0.1, 0.1, 0.3, 0.5, 0.5, 0.9])
    masks = np.array([[0, 0, 0, 1, 1, 255]])
    entropy = -(2 * np.log(0.9) + np.log(0.7) + 2 * np.log(0.5)) / 5
    dice = ((1 - 6 / 7.5) + (1 - 3 / 4.5)) / 2
    tversky = ((0.65 / 4.15) ** 0.75 + (0.85 / 2.85) ** 0.75) / 2
    values = {"cross_entropy": entropy, "dice": dice, "both": entropy + dice, "focal_tversky": tversky}
    return np.log([1 - p, p])[None], masks, values


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "both", "focal_tversky"])
def test_values_worked_out_by_hand(name):
    logits, masks, values = by_hand()
    assert torch_loss(name, logits, masks)[0] == pytest.approx(values[name], rel=1e-6)
    assert keras_loss(name, logits, masks)[0] == pytest.approx(values[name], rel=1e-6)


def test_keras_counts_in_float32_whatever_its_default_is():
    """5005 pixels are more than a half-precision number can count one by one."""
    logits, masks, values = by_hand()
    before = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        found = keras_loss("cross_entropy", np.tile(logits, 1001), np.tile(masks, 1001))[0]
    finally:
        keras.config.set_floatx(before)
    assert found == pytest.approx(values["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_binary_cross_entropy_worked_out_by_hand(outputs):
    """One output is 0.2 where the mask is 0 and 0.6 where it is 1; of two outputs, the first is 1 minus the second."""
    q = np.array([[[0.2, 0.6]]]) if outputs == 1 else np.array([[[0.8, 0.4], [0.2, 0.6]]])
    logits, masks = np.log(q / (1 - q)), np.array([[0, 1]])
    for loss in (torch_loss, keras_loss):
        assert loss("bce", logits, masks)[0] == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2, rel=1e-6)


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


@pytest.mark.parametrize(("name", "outputs"), [(n, k) for n in LOSSES for k in (1, 3) if fits(n, (1, k))])
def test_everything_is_made_on_the_device_of_the_tensors(name, outputs):
    """Of torch's devices "meta" is on every machine, and mixes with the CPU no more than a GPU does."""
    logits, masks = torch.empty(2, outputs, 4, 5, device="meta"), torch.empty(2, 4, 5, dtype=torch.int64, device="meta")
    assert of_torch.loss(name, logits, masks).device.type == "meta"


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
