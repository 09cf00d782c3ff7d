"""Training in Keras, on one device, or with TensorFlow on all devices that it lists."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import portable
from ..contract import Array
from ..data import IGNORE
from ..ops.keras import keras
from .losses.keras import loss as compute_loss
from .settings import Settings
from .state import check_arrays

ops = keras.ops
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def process_group() -> AbstractContextManager[tuple[int, int]]:
    """Return a context manager that yields (0, 1), the rank of this process and the number of processes.

    One process uses all devices.
    """
    return nullcontext((0, 1))


class Trainer:
    """Train a network on batches of images (N, C, *S) and masks (N, *S), and count its predictions.

    Args:
        settings: the settings of the run.
        make: a function that returns the network, called with backend=...
        classes: K, the number of classes.
    """

    def __init__(self, settings: Settings, make: Callable[..., Any], classes: int) -> None:
        keras.utils.set_random_seed(settings.seed)
        self.strategy = _strategy()
        self.framework = f"keras on {keras.backend.backend()}"
        self.devices = self.strategy.num_replicas_in_sync if self.strategy else 1
        if self.strategy and settings.accumulate > 1:
            got = f"{settings.accumulate} with {self.devices} devices: leave out --accumulate, or use torch"
            raise ValueError(f"accumulate must be 1 if Keras trains on several devices, got {got}")
        with self.strategy.scope() if self.strategy else nullcontext():
            self.network = make(backend="keras", dtype=POLICIES[settings.precision])
            self.channels_first = self.network.data_format == "channels_first"
            self.metric = Confusion(classes, self.channels_first)
            self.network.compile(
                optimizer=_optimizer(settings),
                loss=Loss(settings.loss, self.channels_first, _sum_replicas if self.strategy else _identity),
                weighted_metrics=[self.metric],
                jit_compile=keras.backend.backend() == "jax",   # TensorFlow compiles again for every size
            )
            self.network.optimizer.build(self.network.trainable_variables)
        self.confusion = np.zeros((classes, classes), np.int64)

    def begin_epoch(self, rate: float, seed: int) -> None:
        """Set the learning rate and the seed of all random numbers for an epoch of training."""
        self.network.optimizer.learning_rate = rate
        for i, state in enumerate(_generator_states(self.network)):
            state.assign(np.array([seed, i], keras.backend.standardize_dtype(state.dtype)))

    def step(self, images: Array, masks: NDArray[Any]) -> float:
        """Train on a batch, add its predictions to the confusion matrix, and return the loss of the batch.

        images: (N, C, *S). masks: class indices, (N, *S). With several devices, each trains on a part of them.
        """
        return self._run_step("train", images, masks)

    def evaluate(self, images: Array, masks: NDArray[Any]) -> None:
        """Add the predictions for a batch to the confusion matrix, without training. Arguments as `step`."""
        self._run_step("test", images, masks)

    def logits(self, images: Array) -> Array:
        """Return the logits float32 (N, K, *S) of the network for images (N, C, *S), without training."""
        x = images if self.channels_first else np.moveaxis(images, 1, -1)
        y = np.asarray(self.network.predict_on_batch(x), np.float32)[: len(x)]   # each of several devices computes all
        return y if self.channels_first else np.ascontiguousarray(np.moveaxis(y, -1, 1))

    def add_confusion(self, counts: NDArray[np.int64]) -> None:
        """Add the number of pixels (K, K), by true and predicted class, to the confusion matrix."""
        self.confusion += counts

    def pop_confusion(self) -> NDArray[np.int64]:
        """Return the confusion matrix of all devices since the last call, and set it to 0.

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
        """Run a step of Keras, add its predictions to the confusion matrix, and return the loss.

        mode: "train", or "test" for no training. Other arguments as `step`.
        """
        x, y = np.asarray(images), np.asarray(masks, np.int32)
        x = x if self.channels_first else np.moveaxis(x, 1, -1)
        self.network.reset_metrics()
        if self.strategy:
            getattr(self.network, f"make_{mode}_function")()
            logs = getattr(self.network, f"{mode}_function")(iter([_distribute(self.strategy, x, y)]))
        else:
            logs = getattr(self.network, f"{mode}_on_batch")(x, y, return_dict=True)
        self.confusion += np.array(ops.convert_to_numpy(self.metric.total_cm), np.int64)
        return float(logs["loss"])


class Loss(keras.losses.Loss):
    """The loss `name` of `losses`, of logits (N, K, *S) if `channels_first`, else (N, *S, K).

    `sum_devices` returns the sum of a count over all devices.
    """

    def __init__(self, name: str, channels_first: bool, sum_devices: Callable[[Any], Any]) -> None:
        super().__init__(reduction="sum", name=name)   # each device divides by the count over all devices
        self.channels_first, self.sum_devices = channels_first, sum_devices

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of masks y_true (N, *S) and logits y_pred, a float32 scalar."""
        return compute_loss(self.name, _to_channels_last(y_pred, self.channels_first), y_true, self.sum_devices)


class Confusion(keras.metrics.MeanIoU):
    """Keras's confusion matrix of masks (N, *S) and logits (N, K, *S) if `channels_first`, else (N, *S, K)."""

    def __init__(self, classes: int, channels_first: bool) -> None:
        super().__init__(classes, ignore_class=IGNORE, name="mean_iou")
        self.channels_first = channels_first

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Add the predictions of logits y_pred for masks y_true (N, *S) to the matrix.

        One output predicts class 1 where its logit is above 0.
        """
        logits = _to_channels_last(y_pred, self.channels_first)
        predictions = ops.argmax(logits, axis=-1) if logits.shape[-1] > 1 else logits[..., 0] > 0
        return super().update_state(y_true, ops.cast(predictions, "int32"), sample_weight)


def _to_channels_last(y: Any, channels_first: bool) -> Any:
    """Return y with shape (N, *S, K). Its own shape is (N, K, *S) if `channels_first`, else (N, *S, K)."""
    return ops.moveaxis(y, 1, -1) if channels_first else y


def _optimizer(settings: Settings) -> Any:
    """Return the Keras optimizer of the settings, with PyTorch's default epsilon of 1e-8 for Adam and AdamW."""
    options = {"gradient_accumulation_steps": settings.accumulate} if settings.accumulate > 1 else {}
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
