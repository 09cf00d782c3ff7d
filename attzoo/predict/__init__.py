"""A trained network in use: what it makes of images and volumes, whole or by windows, and where it looks meanwhile."""

from .files import Unfinished, maps_file, predict_files
from .network import Network, label, open_network, predict, segment

__all__ = ["Network", "Unfinished", "label", "maps_file", "open_network", "predict", "predict_files", "segment"]
