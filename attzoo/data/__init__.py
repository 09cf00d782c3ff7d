"""Read images, masks and volumes, and write predicted masks. All code that depends on file formats is here.

`formats` lists the formats; `pictures`, `tiff` and `volumes` read their files. `reading` converts the stored samples to
images, `masks` converts them to class indices. Images are (C, *S) in the dtype of their file, masks are int64 (*S),
with two or three spatial axes S.

Words of this package: a picture is a file of one 2-d image, such as PNG; a volume is a .npy or NIfTI file; an image is
the input of a network from either; samples are the numbers that a file stores.
"""

from .channels import channel_files, describe_channels, first_files, read_channels
from .extra import package
from .grids import check_same_grid, check_same_map
from .labels import IGNORE, Labels, parse_labels
from .masks import describe_mask, read_mask
from .orientation import transposes
from .reading import describe_image, read_image, read_shape
from .source import VOLUMES, FileInfo, adding_path, ending, has_known_ending, unsupported_format
from .volumes import Geometry, read_geometry, write_mask

__all__ = [
    "IGNORE",
    "VOLUMES",
    "Geometry",
    "Labels",
    "FileInfo",
    "adding_path",
    "channel_files",
    "check_same_grid",
    "check_same_map",
    "describe_channels",
    "describe_image",
    "describe_mask",
    "ending",
    "first_files",
    "has_known_ending",
    "package",
    "parse_labels",
    "read_channels",
    "read_geometry",
    "read_image",
    "read_mask",
    "read_shape",
    "transposes",
    "unsupported_format",
    "write_mask",
]
