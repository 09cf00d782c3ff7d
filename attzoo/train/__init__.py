"""Training of networks with attention on folders of images and masks, in PyTorch and in Keras: `attzoo train`.

`files` finds and reads images and masks, `data` prepares them, `batches` takes them together, `phantoms` draws a
synthetic task; `settings`, `losses`, `run` and the two bodies `torch` and `keras` do the rest.
"""

from .run import train
from .settings import Settings

__all__ = ["train", "Settings"]
