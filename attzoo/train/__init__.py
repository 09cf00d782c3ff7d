"""Train U-Nets with attention on folders of images and masks, in PyTorch and in Keras: `attzoo train`.

`files` finds images and masks, `pairs` checks them, `survey` counts classes, `preparation` resizes and normalises,
`data`, `patches` and `phantoms` are datasets, `batches` loads them,
`windows` predicts whole images for validation. `settings` has all options and `losses` the losses. `run` has
the training loop, `torch` and `keras` the trainers. `state`, `best`, `basis` and `report` write files.
"""

from .run import train
from .settings import Settings

__all__ = ["train", "Settings"]
