"""Use a trained network: predict masks of images and volumes, and draw its attention coefficients."""

from .files import Unfinished, maps_file, predict_files
from .network import Network, label, open_network, predict, segment

__all__ = ["Network", "Unfinished", "label", "maps_file", "open_network", "predict", "predict_files", "segment"]
