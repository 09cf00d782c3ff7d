"""Training in Keras, on one device or, on TensorFlow, on all that it sees."""

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
from .losses.keras import loss as loss_of
from .settings import Settings
from .state import check_arrays

ops = keras.ops
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def process_group() -> AbstractContextManager[tuple[int, int]]:
    """Rank of the process and the number of processes: one has all devices."""
    return nullcontext((0, 1))


class Trainer:
    """A network in training: steps on batches (N, C, *S) and (N, *S), counts of what it found, and its state."""

    def __init__(self, settings: Settings, make: Callable[..., Any], classes: int) -> None:
        keras.utils.set_random_seed(settings.seed)
        self.strategy = _strategy()
        self.framework = f"keras on {keras.backend.backend()}"
        self.devices = self.strategy.num_replicas_in_sync if self.strategy else 1
        if self.strategy and settings.accumulate > 1:
            raise ValueError(f"accumulate must be 1 where Keras has several devices, got {settings.accumulate}")
        with self.strategy.scope() if self.strategy else nullcontext():
            self.network = make(backend="keras", dtype=POLICIES[settings.precision])
            self.first = self.network.data_format == "channels_first"
            self.confusion = Confusion(classes, self.first)
            self.network.compile(
                optimizer=_optimizer(settings),
                loss=Loss(settings.loss, self.first, _summed if self.strategy else _alone),
                weighted_metrics=[self.confusion],
                jit_compile=keras.backend.backend() == "jax",   # TensorFlow would compile anew for every size
            )
            self.network.optimizer.build(self.network.trainable_variables)
        self.found = np.zeros((classes, classes), np.int64)

    def begin(self, rate: float, seed: int) -> None:
        """Begin an epoch, whose random draws follow `seed`."""
        self.network.optimizer.learning_rate = rate
        for i, state in enumerate(_generators(self.network)):
            state.assign(np.array([seed, i], keras.backend.standardize_dtype(state.dtype)))

    def step(self, images: Array, masks: NDArray[Any]) -> float:
        """Learn from a batch; the loss on it, on all devices."""
        return self._run("train", images, masks)

    def evaluate(self, images: Array, masks: NDArray[Any]) -> None:
        """Count what the network finds in a batch, without learning."""
        self._run("test", images, masks)

    def counts(self) -> NDArray[np.int64]:
        """(K, K): pixels on all devices since this was last asked, truth by prediction."""
        found, self.found = self.found, np.zeros_like(self.found)
        return found

    def state(self) -> dict[str, Array]:
        """Every array that training goes on from."""
        arrays = {f"network.{name}": a for name, a in portable.weights(self.network).items()}
        slots = enumerate(self.network.optimizer.variables)
        return arrays | {f"optimizer.{i}": np.array(ops.convert_to_numpy(v)) for i, v in slots}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Go on from a state. Raises ValueError, before it changes anything, for one that is not of such a trainer."""
        check_arrays(arrays, self.state())
        named = {name.removeprefix("network."): a for name, a in arrays.items() if name.startswith("network.")}
        portable.load_weights(self.network, named)
        for i, variable in enumerate(self.network.optimizer.variables):
            variable.assign(arrays[f"optimizer.{i}"])

    def _run(self, kind: str, images: Array, masks: NDArray[Any]) -> float:
        """One step of Keras's own; adds what was found to the counts, and returns the loss."""
        x, y = np.asarray(images), np.asarray(masks, np.int32)
        x = x if self.first else np.moveaxis(x, 1, -1)
        self.network.reset_metrics()
        if self.strategy:
            getattr(self.network, f"make_{kind}_function")()
            logs = getattr(self.network, f"{kind}_function")(iter([_shared(self.strategy, x, y)]))
        else:
            logs = getattr(self.network, f"{kind}_on_batch")(x, y, return_dict=True)
        self.found += np.array(ops.convert_to_numpy(self.confusion.total_cm), np.int64)
        return float(logs["loss"])


class Loss(keras.losses.Loss):
    """Loss `name` of logits, channels first or last; `everywhere` adds a count to those of the other devices."""

    def __init__(self, name: str, first: bool, everywhere: Callable[[Any], Any]) -> None:
        super().__init__(reduction="sum", name=name)   # of the devices' shares, each over the count of all
        self.first, self.everywhere = first, everywhere

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return loss_of(self.name, _last(y_pred, self.first), y_true, self.everywhere)


class Confusion(keras.metrics.MeanIoU):
    """Keras's counts of pixels, truth by prediction, from logits."""

    def __init__(self, classes: int, first: bool) -> None:
        super().__init__(classes, ignore_class=IGNORE, name="mean_iou")
        self.first = first

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        y_pred = _last(y_pred, self.first)
        found = ops.argmax(y_pred, axis=-1) if y_pred.shape[-1] > 1 else y_pred[..., 0] > 0
        return super().update_state(y_true, ops.cast(found, "int32"), sample_weight)


def _last(y: Any, first: bool) -> Any:
    return ops.moveaxis(y, 1, -1) if first else y


def _optimizer(settings: Settings) -> Any:
    """The optimizer, with torch's epsilon."""
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(settings.rate, momentum=settings.momentum, **_accumulating(settings))
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(settings.rate, epsilon=1e-8, **_accumulating(settings))
    return keras.optimizers.AdamW(settings.rate, weight_decay=settings.decay, epsilon=1e-8, **_accumulating(settings))


def _accumulating(settings: Settings) -> dict[str, Any]:
    return {"gradient_accumulation_steps": settings.accumulate} if settings.accumulate > 1 else {}


def _generators(network: Any) -> list[Any]:
    """The states of a network's random generators."""
    layers = [network, *network._flatten_layers(include_self=False)]
    return [generator.state for layer in layers for generator in layer._seed_generators]


# ---- several devices -------------------------------------------------------------------------------


def _strategy() -> Any:
    """TensorFlow's MirroredStrategy where it sees several devices of the best kind, else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    seen = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in seen]) if len(seen) > 1 else None


def _alone(count: Any) -> Any:
    return count


def _summed(count: Any) -> Any:
    """The sum of a count over devices."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, count) if context else count


def _shared(strategy: Any, x: Array, y: NDArray[Any]) -> Any:
    """A batch in equal shares, one for each device.

    Where it does not divide, its first images fill up, without a pixel that counts.
    """
    count = strategy.num_replicas_in_sync
    more = np.arange(-len(x) % count) % len(x)
    x, y = np.concatenate([x, x[more]]), np.concatenate([y, np.full_like(y[more], IGNORE)])
    each = len(x) // count

    def share(context: Any) -> Any:
        import tensorflow as tf

        at = slice(each * context.replica_id_in_sync_group, each * (context.replica_id_in_sync_group + 1))
        return tf.constant(x[at]), tf.constant(y[at])

    return strategy.experimental_distribute_values_from_function(share)
