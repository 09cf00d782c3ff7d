"""The losses of both frameworks against formulas in float64, and their gradients against each other."""

import numpy as np
import pytest
import torch

from attzoo.ops.keras import keras
from attzoo.train.losses import keras as keras_losses
from attzoo.train.losses import torch as torch_losses
from attzoo.train.settings import LOSSES

IGNORE = 255   # as documented
SHAPES = [(3, 4, 5, 6), (2, 3, 3, 4, 2), (2, 1, 5, 4), (1, 2, 1, 1)]


def formula(name, logits, masks):
    """Compute the loss that attzoo.train.losses defines in float64, per pixel: logits (N, K, *S), masks (N, *S)."""
    if name == "both":
        return formula("cross_entropy", logits, masks) + formula("dice", logits, masks)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p, sigmoid = p / p.sum(1, keepdims=True), 1 / (1 + np.exp(-logits))
    terms = []
    for n, mask in enumerate(masks):
        pixels = [index for index in np.ndindex(mask.shape) if mask[index] != IGNORE]
        if name == "cross_entropy":
            terms += [-np.log(p[(n, mask[index], *index)]) for index in pixels]
            continue
        outputs = []   # for each class, predictions and targets per pixel
        for k in range(logits.shape[1]):
            positive = k if logits.shape[1] > 1 else 1
            targets = np.array([mask[index] == positive for index in pixels], float)
            outputs.append((np.array([(sigmoid if name == "bce" else p)[(n, k, *index)] for index in pixels]), targets))
        if name == "bce":
            terms += [v for factor, t in outputs for v in -t * np.log(factor) - (1 - t) * np.log(1 - factor)]
        elif pixels and name == "dice":
            terms += [1 - (2 * (factor * t).sum() + 1) / (factor.sum() + t.sum() + 1) for factor, t in outputs]
        elif pixels:
            overlaps = [((f * t).sum() + 1, ((1 - f) * t).sum(), (f * (1 - t)).sum()) for f, t in outputs]
            terms += [(1 - tp / (tp + 0.7 * fn + 0.3 * fp)) ** 0.75 for tp, fn, fp in overlaps]   # as in the paper
    return float(np.mean(terms)) if terms else 0.0


def torch_loss(name, logits, masks):
    """Return the loss and its gradient for the logits in PyTorch, float32: logits (N, K, *S), masks (N, *S)."""
    x = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    value = torch_losses.loss(name, x, torch.from_numpy(masks))
    value.backward()
    return value.item(), x.grad.numpy()


def keras_loss(name, logits, masks):
    """Return the loss and its gradient for the logits in Keras, with the arguments and shapes of `torch_loss`."""
    import tensorflow as tf

    x = tf.constant(np.moveaxis(logits, 1, -1), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = keras_losses.loss(name, x, masks)
    return float(value), np.moveaxis(tape.gradient(value, x).numpy(), -1, 1)


def random_batch(shape, seed=0):
    """Return random logits of a shape (N, K, *S), and masks (N, *S)."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, max(shape[1], 2), (shape[0], *shape[2:]))
    masks[0][rng.random(masks[0].shape) < 0.3] = IGNORE
    return rng.normal(0, 3, shape), masks


def is_defined(name, shape):
    """Whether a loss is defined for logits of this shape: only bce accepts a single output."""
    return name == "bce" or shape[1] > 1


def example():
    """Return one image of six pixels and two classes, and its losses computed by hand.

    p(class 1) is 0.1, 0.1, 0.3 in pixels of class 0, and 0.5, 0.5 in pixels of class 1; the last pixel is ignored.
    Class 0: sum(p t) = 2.5, false negatives 0.5, false positives 1.0. Class 1: sum(p t) = 1.0, false negatives 1.0,
    false positives 0.5. Focal Tversky is eq. 3 and 4 of arXiv:1810.07842v1 with alpha 0.7 for false negatives, beta 0.3
    for false positives and gamma 4/3, with 1 added to both sides of the fraction and the mean over classes:
    TI = 3.5 / (3.5 + 0.35 + 0.3) and 2 / (2 + 0.7 + 0.15).
    """
    probabilities = np.array([0.1, 0.1, 0.3, 0.5, 0.5, 0.9])
    masks = np.array([[0, 0, 0, 1, 1, 255]])
    entropy = -(2 * np.log(0.9) + np.log(0.7) + 2 * np.log(0.5)) / 5
    dice = ((1 - 6 / 7.5) + (1 - 3 / 4.5)) / 2
    tversky = ((0.65 / 4.15) ** 0.75 + (0.85 / 2.85) ** 0.75) / 2
    values = {"cross_entropy": entropy, "dice": dice, "both": entropy + dice, "focal_tversky": tversky}
    return np.log([1 - probabilities, probabilities])[None], masks, values


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "both", "focal_tversky"])
def test_values_equal_those_computed_by_hand(name):
    logits, masks, values = example()
    assert torch_loss(name, logits, masks)[0] == pytest.approx(values[name], rel=1e-6)
    assert keras_loss(name, logits, masks)[0] == pytest.approx(values[name], rel=1e-6)


def test_class_weights_multiply_losses_of_pixels():
    """Class 0 has the weight 1 and class 1 the weight 3, in the pixels of `example`: divided by 3 * 1 + 2 * 3."""
    logits, masks, values = example()
    entropy = -(2 * np.log(0.9) + np.log(0.7) + 3 * 2 * np.log(0.5)) / 9
    x, y = torch.tensor(logits).float(), torch.tensor(masks)
    one = np.log([0.2, 0.6, 0.6]) - np.log([0.8, 0.4, 0.4])   # one output; the last pixel is ignored
    binary = -(np.log(0.8) + 3 * np.log(0.6)) / 4
    x1, y1 = one[None, None], np.array([[0, 1, 255]])

    def loss_of_torch(name, logits, masks, weights):
        return torch_losses.loss(
            name, torch.tensor(logits).float(), torch.tensor(masks), weights=torch.tensor(weights)
        ).item()

    def loss_of_keras(name, logits, masks, weights):
        return float(keras_losses.loss(name, np.moveaxis(logits, 1, -1), masks, weights=weights))

    for loss in (loss_of_torch, loss_of_keras):
        assert loss("cross_entropy", logits, masks, (1.0, 3.0)) == pytest.approx(entropy, rel=1e-6)
        assert loss("both", logits, masks, (1.0, 3.0)) == pytest.approx(entropy + values["dice"], rel=1e-6)
        assert loss("bce", x1, y1, (1.0, 3.0)) == pytest.approx(binary, rel=1e-6)
        assert loss("cross_entropy", logits, masks, (1e-9,) * 2) == pytest.approx(values["cross_entropy"], rel=1e-6)
        assert loss("cross_entropy", logits, np.full_like(masks, IGNORE), (1.0, 3.0)) == 0
    expected = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]), ignore_index=IGNORE)(x, y)
    assert entropy == pytest.approx(expected.item(), rel=1e-6)


def test_keras_counts_in_float32_if_its_default_is_float16():
    """float16 cannot count 5005 pixels one by one."""
    logits, masks, values = example()
    floatx_before = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        value = keras_loss("cross_entropy", np.tile(logits, 1001), np.tile(masks, 1001))[0]
    finally:
        keras.config.set_floatx(floatx_before)
    assert value == pytest.approx(values["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_binary_cross_entropy_equals_the_value_computed_by_hand(outputs):
    """One output is 0.2 where the mask is 0 and 0.6 where it is 1; of two outputs, the first is 1 minus the second."""
    probabilities = np.array([[[0.2, 0.6]]]) if outputs == 1 else np.array([[[0.8, 0.4], [0.2, 0.6]]])
    logits, masks = np.log(probabilities / (1 - probabilities)), np.array([[0, 1]])
    for loss in (torch_loss, keras_loss):
        assert loss("bce", logits, masks)[0] == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2, rel=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs the gradient tape of TensorFlow")
@pytest.mark.parametrize(("name", "shape"), [(n, s) for n in LOSSES for s in SHAPES if is_defined(n, s)])
def test_both_frameworks_compute_the_formula(name, shape):
    logits, masks = random_batch(shape)
    torch_value, gradient = torch_loss(name, logits, masks)
    keras_value, keras_gradient = keras_loss(name, logits, masks)
    expected = formula(name, logits, masks)
    assert torch_value == pytest.approx(expected, rel=2e-5)
    assert keras_value == pytest.approx(expected, rel=2e-5)
    np.testing.assert_allclose(gradient, keras_gradient, rtol=1e-4, atol=1e-7)
    assert not np.moveaxis(gradient, 1, -1)[masks == IGNORE].any()
    direction = np.random.default_rng(1).normal(size=shape)
    step = 1e-5 * direction
    difference = (formula(name, logits + step, masks) - formula(name, logits - step, masks)) / 2e-5
    assert (gradient * direction).sum() == pytest.approx(difference, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize(("name", "shape"), [(n, s) for n in LOSSES for s in SHAPES if is_defined(n, s)])
def test_terms_of_slabs_of_large_images_give_the_formula(name, shape):
    logits, masks = random_batch(shape)
    x, y = torch.from_numpy(logits), torch.from_numpy(masks)
    for pixels in (1, 2 * masks[:, 0].size, 1000):   # one row, two rows, the whole images
        terms = torch_losses.terms_of_large_images(name, x, y, None, pixels)
        value = sum(float(total) / max(float(count), 1) for total, count in terms)
        assert value == pytest.approx(formula(name, logits, masks), rel=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_images_in_which_all_pixels_are_ignored_are_left_out(name):
    logits, masks = random_batch((3, 4, 5, 6))
    masks[1] = IGNORE
    rest = [0, 2]
    for loss in (torch_loss, keras_loss):
        value, gradient = loss(name, logits, masks)
        expected, _ = loss(name, logits[rest], masks[rest])
        assert value == pytest.approx(expected, rel=1e-6)
        assert not gradient[1].any()
        value, gradient = loss(name, logits, np.full_like(masks, IGNORE))
        assert value == pytest.approx(0, abs=1e-12)
        assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_correct_and_wrong_predictions_have_finite_gradients(name):
    masks = np.random.default_rng(0).integers(0, 3, (2, 4, 4))
    correct = np.moveaxis(np.eye(3)[masks], -1, 1) * 200 - 100
    for loss in (torch_loss, keras_loss):
        low, gradient = loss(name, correct, masks)
        high, gradient_of_wrong = loss(name, -correct, masks)
        assert low < 1e-4 < 0.5 < high
        assert np.isfinite(gradient).all()
        assert np.isfinite(gradient_of_wrong).all()


@pytest.mark.parametrize(("name", "outputs"), [(n, k) for n in LOSSES for k in (1, 3) if is_defined(n, (1, k))])
def test_losses_are_computed_on_the_device_of_the_tensors(name, outputs):
    """The device "meta" is always available, and operations that mix it with the CPU raise, as for a GPU."""
    logits, masks = torch.empty(2, outputs, 4, 5, device="meta"), torch.empty(2, 4, 5, dtype=torch.int64, device="meta")
    assert torch_losses.loss(name, logits, masks).device.type == "meta"


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_parts_with_summed_counts_add_up_to_the_loss_of_the_batch(name):
    logits, masks = random_batch((4, 3, 5, 6))
    expected = torch_loss(name, logits, masks)[0]

    def counts(part):
        x, y = torch.tensor(logits[part]).float(), torch.tensor(masks[part])
        return [count for _, count in torch_losses.terms(name, x, y)]

    parts = [slice(0, 1), slice(1, 4)]
    total = 0.0
    for part in parts:
        sums = iter([sum(pair) for pair in zip(*map(counts, parts), strict=True)])
        x, y = torch.tensor(logits[part]).float(), torch.tensor(masks[part])
        total += torch_losses.loss(name, x, y, lambda _, sums=sums: next(sums)).item()
    assert total == pytest.approx(expected, rel=1e-6)
