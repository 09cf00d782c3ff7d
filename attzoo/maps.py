"""Where a model looks: the coefficients of every block in it, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .adapters import adapter, backend_of, framework_of
from .contract import Array


class Maps(dict[str, Array]):
    """Coefficients, channels first, by the path of the block that gave them last."""

    def __missing__(self, path: str) -> Array:
        known = f"known: {', '.join(self)}" if self else EAGERLY
        raise KeyError(f"no map of {path!r}; {known}")


EAGERLY = "expected the model to be called eagerly, model(x): what is traced or compiled gives no numbers to look at"


@contextmanager
def attention_maps(model: Any) -> Iterator[Maps]:
    """What every block in a model attends to, for the calls made inside.

        with attzoo.attention_maps(model) as maps:
            model(x)
        maps["layer3.1.attention"]      # (N, C, 1, 1) or (N, 1, *S), a NumPy array of float32, or of float64

    model: any torch module or Keras layer that holds blocks, ours or a third party's. A block is called by its path:
    in torch that of `named_modules`, in Keras the names of layers, joined by dots. Arrays are channels first and of
    the latest call; a block that stands in several places has its first path, and of a call its last map. A block
    made of blocks reports through its parts: a CBAM at "block" as "block.channel" and "block.spatial".

    Nothing about the model changes but that while inside, its blocks' `attention` is listened to: what a call gives,
    its gradients and how often coefficients are computed stay, and afterwards nothing is left behind. A model of
    torch.compile runs eagerly inside.
    Raises TypeError for what is no model, ValueError for one without blocks or on several devices, and in the end,
    unless something else went wrong, ValueError where a traced call (`model.predict`, tf.function, jit) gave no numbers
    to look at, or no block was called.
    """
    backend = framework_of(model)
    if backend is None:
        raise TypeError(f"expected a model of torch or Keras, got {type(model).__name__}")
    found = adapter(backend).blocks(model)
    if not found:
        raise ValueError(f"expected a model that holds attention blocks, got a {type(model).__name__} without any")
    maps, traced = Maps(), set()
    with ExitStack() as stack:
        stack.enter_context(adapter(backend).eager())
        for path, block in found.items():

            def hear(tensor: Any, path: str = path, block: Any = block) -> None:
                array = adapter(backend_of(block)).coefficients(tensor, block)
                if array is None:
                    traced.add(path)
                else:   # after a trace too, as Keras makes one of a model that is not built yet
                    traced.discard(path)
                    maps[path] = array

            stack.enter_context(_heard(block, hear))
        yield maps
    if traced or not maps:
        raise ValueError(EAGERLY)


class _Tap:
    """Stands before a block's `attention` and tells listeners what it gave."""

    def __init__(self, block: Any) -> None:
        self.attention = block.attention
        self.before = {name: value for name, value in vars(block).items() if name == "attention"}
        self.listeners: list[Callable[[Any], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        coefficients = self.attention(*args, **kwargs)
        for hear in self.listeners:
            hear(coefficients)
        return coefficients


@contextmanager
def _heard(block: Any, hear: Callable[[Any], None]) -> Iterator[None]:
    """Let `hear` have the block's coefficients inside. Listeners may leave in another order than they came in."""
    own = vars(block)   # past __setattr__, by which a framework would note it
    if not isinstance(own.get("attention"), _Tap):
        own["attention"] = _Tap(block)
    tap = own["attention"]
    tap.listeners.append(hear)
    try:
        yield
    finally:
        tap.listeners.remove(hear)
        if not tap.listeners:
            del own["attention"]
            own.update(tap.before)   # what a third party had put there itself
