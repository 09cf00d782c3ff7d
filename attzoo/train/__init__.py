"""Train U-Nets with attention on folders of images and masks, in PyTorch and in Keras: `attzoo train`.

`files` finds images and masks, `pairs` checks them, `survey` counts classes, `preparation` resizes and normalises,
`data`, `patches` and `phantoms` are datasets, `augmentation` changes images at random, `batches` loads them. `settings`
has all options, `folds`, `schedule` and `weighting` compute what follows from them, and `losses` has the losses. `run`
has the training loop, `torch` and `keras` the trainers, `validation` counts, and `windows` predicts whole images.
`output`, `state`, `best`, `basis` and `report` write files.
"""

from .run import train
from .settings import Settings

__all__ = ["train", "Settings"]
