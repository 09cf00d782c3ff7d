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
def test_phantoms_are_a_dataset_that_follows_from_its_seed(size):
    some, again, later = Phantoms(3, size, seed=2), Phantoms(5, size, seed=2), Phantoms(2, size, seed=2, start=1)
    assert (len(some), some.channels, some.spatial_dims, some.classes) == (3, 1, len(size), len(CLASSES))
    assert some.common_size() == size
    images, masks = some.arrays()
    assert (images.shape, images.dtype) == ((3, 1, *size), np.float32)
    assert (masks.shape, masks.dtype) == ((3, *size), np.int64)
    assert masks.min() >= 0
    assert masks.max() < len(CLASSES)
    for index in (2, 0, 1):
        for epoch in (0, 7):
            image, mask = again[epoch, index]
            np.testing.assert_array_equal(image, images[index])
            np.testing.assert_array_equal(mask, masks[index])
            image[:], mask[:] = 9, 9   # what it gives away is not what it keeps
    np.testing.assert_array_equal(later.arrays()[0], images[1:])
    if images[0].size > 1:
        np.testing.assert_allclose(images.mean(tuple(range(1, images.ndim))), 0, atol=1e-5)
        np.testing.assert_allclose(images.std(tuple(range(1, images.ndim))), 1, rtol=1e-4)
        assert not np.array_equal(images[0], images[1])
        assert not np.array_equal(Phantoms(1, size, seed=3)[0, 0][0], images[0])
    with pytest.raises(IndexError, match="an index from 0 to 2, got 3"):
        some[0, 3]


@pytest.mark.parametrize("size", [(64, 64), (24, 48, 48)])
def test_every_class_is_in_every_phantom_and_small_ones_are_small(size):
    share = np.array([[(draw(size, 0, i)[1] == k).mean() for k in range(len(CLASSES))] for i in range(16)])
    assert share.min() > 0.001
    background, liver, kidney, pancreas = share.mean(0)
    assert background > 0.8
    assert liver > kidney > pancreas
    assert pancreas < 0.02


def test_grey_alone_does_not_tell_the_classes_apart(monkeypatch):
    """There is more of the pancreas's grey in the bowel than in the pancreas, and much of the liver's in the spleen."""
    monkeypatch.setattr(phantoms, "NOISE", 0)
    monkeypatch.setattr(phantoms, "MAX_BIAS", 0)
    for name, grey, least in (("pancreas", phantoms.BOWEL, 1.2), ("liver", phantoms.LIVER, 0.15)):
        inside = outside = 0
        for i in range(16):
            image, mask = draw((64, 64), 0, i)
            alike = np.abs(image - grey) < 0.01
            inside += (alike & (mask == CLASSES.index(name))).sum()
            outside += (alike & (mask == 0)).sum()
        assert outside > least * inside, name


def test_a_written_folder_holds_what_is_drawn(tmp_path):
    write(tmp_path, train=3, valid=2, size=(40, 48), seed=1)
    write(tmp_path, train=3, valid=2, size=(40, 48), seed=1)   # over what is there
    train, valid = find(tmp_path)
    assert [len(train), len(valid)] == [3, 2]
    for at, pair in enumerate([*train, *valid]):
        image, mask = draw((40, 48), 1, at)
        np.testing.assert_array_equal(read_mask(pair[1]), mask)
        got = np.asarray(Image.open(pair[0]))
        assert got.dtype == np.uint8
        np.testing.assert_allclose(got / 220, np.clip(image, 0, 255 / 220), atol=1 / 220)
        colors = np.asarray(Image.open(pair[1]).convert("RGB"))
        np.testing.assert_array_equal(colors, np.reshape(COLORS, (-1, 3))[mask])
    assert sorted(Folder(train).counts) == list(range(len(CLASSES)))
    assert not list(tmp_path.rglob(".*"))


def test_written_volumes_are_a_folder_too(tmp_path):
    write(tmp_path, train=1, valid=1, size=(8, 12, 10))
    folder = Folder(find(tmp_path)[1], Preparation(normalise="none"))
    assert (folder.channels, folder.spatial_dims, folder.common_size()) == (1, 3, (8, 12, 10))
    np.testing.assert_array_equal(folder[0, 0][1], draw((8, 12, 10), 0, 1)[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be >= 1, got 0"),
        ({"count": 1, "size": (8,)}, "the number of axes must be one of 2, 3, got 1"),
        ({"count": 1, "size": (8, 0)}, "size must be >= 1, got 0"),
        ({"count": 1, "start": -1}, "start must be >= 0, got -1"),
    ],
)
def test_phantoms_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Phantoms(**arguments)
