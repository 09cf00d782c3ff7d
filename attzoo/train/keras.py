"""Training in Keras, on one device, or with TensorFlow on all devices that it lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import portable
from ..contract import Array
from ..data import IGNORE
from ..ops.keras import keras
from .losses.keras import Loss, LossTerms, to_channels_last
from .settings import Settings
from .state import check_arrays
from .validation import Validation

ops = keras.ops
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@contextmanager
def process_group(device: str | None = None) -> Iterator[tuple[int, int]]:
    """Yield (0, 1), the rank of this process and the number of processes, and train on a device in the `with` block.

    One process uses all devices of TensorFlow, if `device` is None. Raises ValueError if there is no such device.
    """
    with nullcontext() if device is None else keras.device(_device_name(device)):
        yield 0, 1


def _device_name(device: str) -> str:
    """Return Keras's name, as "gpu:1", of a device, as "cuda:1". Raise ValueError if the backend has no such device."""
    kind, _, number = device.lower().partition(":")
    if keras.backend.backend() == "torch":   # Keras cannot list its devices
        name = "cpu" if kind == "cpu" else device.lower()   # on "cpu:0", Keras makes copies without gradients
        try:
            with keras.device(name):
                ops.zeros(1)
        except (RuntimeError, AssertionError) as err:   # AssertionError: torch without CUDA
            reason = str(err).partition("\n")[0]
            raise ValueError(f"expected a device of torch, got {device}: {reason}") from err
        return name
    name = f"{'gpu' if kind == 'cuda' else kind}:{number or 0}"
    try:
        names = keras.distribution.list_devices(name.partition(":")[0])
    except RuntimeError:   # JAX without devices of this kind
        names = []
    if name not in names:
        listed = ", ".join(names or keras.distribution.list_devices())
        raise ValueError(f"expected a device that {keras.backend.backend()} lists, {listed}, got {device}")
    return name


class Trainer:
    """Train a network on batches of images (N, C, *S) and masks (N, *S), and count its predictions.

    Args:
        settings: the settings of the run.
        make: a function that returns the network, called with backend=...
        classes: K, the number of classes.
        class_weights: the weight of each class in the loss; None weights all alike.
        device: the name of the only device to train on, which `process_group` has set; None uses all.
    """

    def __init__(
        self,
        settings: Settings,
        make: Callable[..., Any],
        classes: int,
        class_weights: Sequence[float] | None = None,
        device: str | None = None,
    ) -> None:
        keras.utils.set_random_seed(settings.seed)
        self.settings, self.class_weights = settings, class_weights
        self.strategy = _strategy() if device is None else None
        self.framework = f"keras on {keras.backend.backend()}"
        self.devices = self.strategy.num_replicas_in_sync if self.strategy else 1
        if self.strategy and settings.accumulate > 1:
            got = f"{settings.accumulate} with {self.devices} devices: leave out --accumulate, or use torch"
            raise ValueError(f"accumulate must be 1 if Keras trains on several devices, got {got}")
        if self.strategy and settings.clip is not None:   # Keras would limit the gradient of each device
            got = f"{settings.clip} with {self.devices} devices: leave out --clip, set --device, or use torch"
            raise ValueError(f"clip must be None if Keras trains on several devices, got {got}")
        with self.strategy.scope() if self.strategy else nullcontext():
            self.network = make(backend="keras", dtype=POLICIES[settings.precision])
            self.channels_first = self.network.data_format == "channels_first"
            images = -(-settings.batch // self.devices) * self.devices   # in a batch, with those added by _distribute
            self.metric = Confusion(classes, images, self.channels_first, bool(self.strategy))
            self.terms = LossTerms(settings.loss, self.channels_first, class_weights)
            self.network.compile(
                optimizer=_optimizer(settings),
                loss=Loss(
                    settings.loss, self.channels_first, _sum_replicas if self.strategy else _identity, class_weights
                ),
                weighted_metrics=[self.metric, self.terms],
                jit_compile=keras.backend.backend() == "jax",   # TensorFlow compiles again for every size
            )
            self.network.optimizer.build(self.network.trainable_variables)
        self.confusion = np.zeros((classes, classes), np.int64)
        self.validation = Validation.empty(classes)

    def begin_epoch(self, rate: float, seed: int) -> None:
        """Set the learning rate and the seed of all random numbers for an epoch of training."""
        self.network.optimizer.learning_rate = rate
        for i, state in enumerate(_generator_states(self.network)):
            state.assign(np.array([seed, i], keras.backend.standardize_dtype(state.dtype)))

    def step(self, images: Array, masks: NDArray[Any]) -> float:
        """Train on a batch, add its predictions to the confusion matrix, and return the loss of the batch.

        images: (N, C, *S). masks: class indices, (N, *S). With several devices, each trains on a part of them.
        """
        loss = self._run_step("train", images, masks)
        self.confusion += np.array(ops.convert_to_numpy(self.metric.counts), np.int64).sum(0)
        return loss

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """Yield the network with the averaged weights in the `with` block, to validate and to save it.

        If the settings do not average weights, the network is unchanged.
        """
        if self.settings.ema is None or not int(self.network.optimizer.iterations):
            yield self.network
            return
        variables = self.network.trainable_variables
        weights = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
        self.network.optimizer.finalize_variable_values(variables)
        try:
            yield self.network
        finally:
            for variable, array in zip(variables, weights, strict=True):
                variable.assign(array)

    def evaluate(self, images: Array, masks: NDArray[Any]) -> None:
        """Add the loss and the predictions of a batch to the validation, without training. Arguments as `step`."""
        self._run_step("test", images, masks)
        counts, terms = (ops.convert_to_numpy(values) for values in (self.metric.counts, self.terms.sums))
        self.validation.add(counts[: len(images)], terms)

    def pop_validation(self) -> Validation:
        """Return the validation of all images since the last call, and begin a new one."""
        validation, self.validation = self.validation, Validation.empty(len(self.confusion))
        return validation

    def logits(self, images: Array) -> Array:
        """Return the logits float32 (N, K, *S) of the network for images (N, C, *S), without training."""
        x = images if self.channels_first else np.moveaxis(images, 1, -1)
        y = np.asarray(self.network.predict_on_batch(x), np.float32)[: len(x)]   # each of several devices computes all
        return y if self.channels_first else np.ascontiguousarray(np.moveaxis(y, -1, 1))

    def pop_confusion(self) -> NDArray[np.int64]:
        """Return the confusion matrix of training on all devices since the last call, and set it to 0.

        It is int64 (K, K): the number of pixels by true class (rows) and predicted class (columns).
        """
        confusion, self.confusion = self.confusion, np.zeros_like(self.confusion)
        return confusion

    def state(self) -> dict[str, Array]:
        """Return all arrays of the network and the optimizer, by name."""
        arrays = {f"network.{name}": array for name, array in portable.weights(self.network).items()}
        slots = enumerate(self.network.optimizer.variables)
        return arrays | {f"optimizer.{i}": np.array(ops.convert_to_numpy(value)) for i, value in slots}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Load arrays that `state` returned. Raises ValueError, and changes nothing, if they do not fit."""
        check_arrays(arrays, self.state())
        weights = {
            name.removeprefix("network."): array for name, array in arrays.items() if name.startswith("network.")
        }
        portable.load_weights(self.network, weights)
        for i, variable in enumerate(self.network.optimizer.variables):
            variable.assign(arrays[f"optimizer.{i}"])

    def _run_step(self, mode: str, images: Array, masks: NDArray[Any]) -> float:
        """Run a step of Keras, which counts its predictions in `metric`, and return the loss.

        mode: "train", or "test" for no training. Other arguments as `step`.
        """
        x, y = np.asarray(images), np.asarray(masks, np.int32)
        x = x if self.channels_first else np.moveaxis(x, 1, -1)
        self.network.reset_metrics()
        self.terms.is_enabled = mode == "test"   # read when Keras traces the step, of which there is one for each mode
        if self.strategy:
            getattr(self.network, f"make_{mode}_function")()
            logs = getattr(self.network, f"{mode}_function")(iter([_distribute(self.strategy, x, y)]))
        else:
            logs = getattr(self.network, f"{mode}_on_batch")(x, y, return_dict=True)
        return float(logs["loss"])


class Confusion(keras.metrics.Metric):
    """The confusion matrix of each image, of masks (N, *S) and logits (N, K, *S) or (N, *S, K).

    Args:
        classes: the number of classes.
        images: the largest number of images in a batch.
        channels_first: whether the logits have the shape (N, K, *S).
        is_distributed: whether each device has a part of the batch.
    """

    def __init__(self, classes: int, images: int, channels_first: bool, is_distributed: bool) -> None:
        super().__init__(name="confusion", dtype="int")
        self.channels_first, self.is_distributed = channels_first, is_distributed
        self.counts = self.add_variable((images, classes, classes), "zeros", dtype=self.dtype, name="counts")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add the predictions of logits y_pred for masks y_true (N, *S) to the matrices.

        One output predicts class 1 where its logit is 0 or more, as in `predict`. Pixels of IGNORE are not counted.
        """
        logits, masks = to_channels_last(y_pred, self.channels_first), ops.cast(y_true, "int32")
        predictions = ops.argmax(logits, axis=-1) if logits.shape[-1] > 1 else logits[..., 0] >= 0
        valid = masks != IGNORE
        images = ops.cumsum(ops.ones_like(masks), axis=0) - 1   # TensorFlow may not know N in advance
        if self.is_distributed:
            images += _first_image(masks)
        classes = self.counts.shape[-1]
        cells = (images * classes + ops.where(valid, masks, 0)) * classes + ops.cast(predictions, "int32")
        pixels = ops.cast(ops.reshape(valid, (-1,)), "int32")
        counts = ops.segment_sum(pixels, ops.reshape(cells, (-1,)), math.prod(self.counts.shape))
        self.counts.assign(self.counts + ops.cast(ops.reshape(counts, self.counts.shape), self.dtype))

    def result(self) -> Any:
        """Return the number of counted pixels: Keras expects a number, but the trainer reads `counts`."""
        return ops.sum(self.counts)


def _optimizer(settings: Settings) -> Any:
    """Return the Keras optimizer of the settings, with PyTorch's default epsilon of 1e-8 for Adam and AdamW."""
    options: dict[str, Any] = {"global_clipnorm": settings.clip}
    if settings.accumulate > 1:
        options["gradient_accumulation_steps"] = settings.accumulate
    if settings.ema is not None:
        options |= {"use_ema": True, "ema_momentum": settings.ema}
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(settings.rate, momentum=settings.momentum, **options)
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(settings.rate, epsilon=1e-8, **options)
    return keras.optimizers.AdamW(settings.rate, weight_decay=settings.decay, epsilon=1e-8, **options)


def _generator_states(network: Any) -> list[Any]:
    """Return the state variables of all random generators (of dropout, for example) in a network."""
    layers = [network, *network._flatten_layers(include_self=False)]
    return [generator.state for layer in layers for generator in layer._seed_generators]


# ---- several devices -------------------------------------------------------------------------------


def _strategy() -> Any:
    """Return a MirroredStrategy if TensorFlow lists several GPUs, or several CPUs and no GPU; else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices]) if len(devices) > 1 else None


def _identity(count: Any) -> Any:
    """Return `count` unchanged: on one device it is the sum over all devices."""
    return count


def _sum_replicas(count: Any) -> Any:
    """Return the sum of a count over all devices of the strategy, within a step; elsewhere the count itself."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, count) if context else count


def _first_image(masks: Any) -> Any:
    """Return the index in the batch of the first image of this device, from its part of the masks (N, *S)."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group * ops.shape(masks)[0] if context else 0


def _distribute(strategy: Any, x: Array, y: NDArray[Any]) -> Any:
    """Split a batch into equal parts, one for each device, and return it as a distributed value of the strategy.

    If its size is not divisible, append the first images with masks in which every pixel is IGNORE.
    """
    devices = strategy.num_replicas_in_sync
    padding = np.arange(-len(x) % devices) % len(x)
    x, y = np.concatenate([x, x[padding]]), np.concatenate([y, np.full_like(y[padding], IGNORE)])
    size = len(x) // devices

    def part_of_device(context: Any) -> Any:
        """Return the images and masks for the device of this replica context."""
        import tensorflow as tf

        rank = context.replica_id_in_sync_group
        rows = slice(size * rank, size * (rank + 1))
        return tf.constant(x[rows]), tf.constant(y[rows])

    return strategy.experimental_distribute_values_from_function(part_of_device)
