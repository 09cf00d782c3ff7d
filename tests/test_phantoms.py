"""Phantoms: drawing, the dataset, and writing folders."""

import numpy as np
import pytest
from PIL import Image

from attzoo.data import read_mask
from attzoo.train import phantoms
from attzoo.train.data import Folder, Preparation
from attzoo.train.files import find
from attzoo.train.phantoms import CLASSES, COLORS, Phantoms, draw, write

SIZES = [(64, 64), (33, 50), (1, 1), (3, 200), (16, 24, 20), (1, 9, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_phantoms_are_a_dataset_that_depends_on_its_seed(size):
    dataset, longer, later = (Phantoms(n, size, seed=2, start=start) for n, start in ((3, 0), (5, 0), (2, 1)))
    assert (len(dataset), dataset.channels, dataset.spatial_dims, dataset.classes) == (3, 1, len(size), len(CLASSES))
    assert dataset.common_size() == size
    images, masks = dataset.arrays()
    assert (images.shape, images.dtype) == ((3, 1, *size), np.float32)
    assert (masks.shape, masks.dtype) == ((3, *size), np.int64)
    assert masks.min() >= 0
    assert masks.max() < len(CLASSES)
    for index in (2, 0, 1):
        for epoch in (0, 7):
            image, mask = longer[epoch, index]
            np.testing.assert_array_equal(image, images[index])
            np.testing.assert_array_equal(mask, masks[index])
            image[:], mask[:] = 9, 9   # samples are copies
    np.testing.assert_array_equal(later.arrays()[0], images[1:])
    if images[0].size > 1:
        np.testing.assert_allclose(images.mean(tuple(range(1, images.ndim))), 0, atol=1e-5)
        np.testing.assert_allclose(images.std(tuple(range(1, images.ndim))), 1, rtol=1e-4)
        assert not np.array_equal(images[0], images[1])
        assert not np.array_equal(Phantoms(1, size, seed=3)[0, 0][0], images[0])
    with pytest.raises(IndexError, match="an index from 0 to 2, got 3"):
        dataset[0, 3]


@pytest.mark.parametrize("size", [(64, 64), (24, 48, 48)])
def test_every_phantom_has_all_classes_in_order_of_size(size):
    shares = np.array([[(draw(size, 0, i)[1] == k).mean() for k in range(len(CLASSES))] for i in range(16)])
    assert shares.min() > 0.001
    background, liver, kidney, pancreas = shares.mean(0)
    assert background > 0.8
    assert liver > kidney > pancreas
    assert pancreas < 0.02


def test_classes_cannot_be_separated_by_grey_values_alone(monkeypatch):
    """More pixels of the bowel than of the pancreas have its grey value; the spleen has that of the liver."""
    monkeypatch.setattr(phantoms, "NOISE", 0)
    monkeypatch.setattr(phantoms, "MAX_BIAS", 0)
    for name, grey, least in (("pancreas", phantoms.BOWEL, 1.2), ("liver", phantoms.LIVER, 0.15)):
        count_inside = count_outside = 0
        for i in range(16):
            image, mask = draw((64, 64), 0, i)
            is_grey = np.abs(image - grey) < 0.01
            count_inside += (is_grey & (mask == CLASSES.index(name))).sum()
            count_outside += (is_grey & (mask == 0)).sum()
        assert count_outside > least * count_inside, name


def test_written_pictures_equal_drawn_phantoms(tmp_path):
    write(tmp_path, train=3, valid=2, size=(40, 48), seed=1)
    write(tmp_path, train=3, valid=2, size=(40, 48), seed=1)   # replaces the files
    train, valid = find(tmp_path)
    assert [len(train), len(valid)] == [3, 2]
    for index, pair in enumerate([*train, *valid]):
        image, mask = draw((40, 48), 1, index)
        np.testing.assert_array_equal(read_mask(pair[1]), mask)
        picture = np.asarray(Image.open(pair[0]))
        assert picture.dtype == np.uint8
        np.testing.assert_allclose(picture / 220, np.clip(image, 0, 255 / 220), atol=1 / 220)
        colors = np.asarray(Image.open(pair[1]).convert("RGB"))
        np.testing.assert_array_equal(colors, np.reshape(COLORS, (-1, 3))[mask])
    assert sorted(Folder(train).counts) == list(range(len(CLASSES)))
    assert not list(tmp_path.rglob(".*"))


def test_written_volumes_equal_drawn_phantoms(tmp_path):
    write(tmp_path, train=1, valid=1, size=(8, 12, 10))
    folder = Folder(find(tmp_path)[1], Preparation(normalise="none"))
    assert (folder.channels, folder.spatial_dims, folder.common_size()) == (1, 3, (8, 12, 10))
    np.testing.assert_array_equal(folder[0, 0][1], draw((8, 12, 10), 0, 1)[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be >= 1, got 0"),
        ({"count": 1, "size": (8,)}, "the number of axes in size must be one of 2, 3, got 1"),
        ({"count": 1, "size": (8, 0)}, "size must be >= 1, got 0"),
        ({"count": 1, "start": -1}, "start must be >= 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Phantoms(**arguments)
