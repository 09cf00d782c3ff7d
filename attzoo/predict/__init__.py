"""Use a trained network: predict masks of images and volumes, score them, and draw its attention coefficients."""

from .files import Unfinished, maps_file, predict_files
from .network import Network, label, open_network, predict, segment
from .scores import means, score

__all__ = [
    "Network",
    "Unfinished",
    "label",
    "maps_file",
    "means",
    "open_network",
    "predict",
    "predict_files",
    "score",
    "segment",
]
