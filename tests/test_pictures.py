import io

import numpy as np
import pytest
from matplotlib.image import imread

from attzoo import look, maps
from attzoo.predict import picture

# ---- maps ------------------------------------------------------------------------------------------


def pictured(*args):
    return imread(io.BytesIO(maps.draw(*args)))


def test_the_picture_shows_images_of_every_kind():
    rng = np.random.default_rng(0)
    bars, strange = rng.random((1, 5, 1, 1)), np.full((1, 1, 4, 6), np.nan)
    colour = pictured(rng.random((3, 8, 12)), {"": rng.random((2, 1, 8, 12)), "a.b": bars, "c" * 99: strange})
    assert colour.shape[2] == 4
    many = pictured(rng.random((1, 8, 12)), {str(i): bars for i in range(9)})
    assert many.shape[0] > 1.5 * colour.shape[0]   # in rows
    shown = {"skip": rng.random((1, 3, 5, 4, 2)), "se": bars[..., None]}
    volume = pictured(rng.random((2, 9, 8, 4)), shown)
    line = pictured(rng.random((1, 9)), {"skip": np.full((1, 1, 9), 0.5), "se": np.full((1, 5, 1), 0.5)})
    assert np.ptp(volume) == np.ptp(line) == 1


def test_the_picture_depends_on_what_it_shows():
    rng = np.random.default_rng(0)
    x, a, b = rng.random((1, 8, 8)), rng.random((1, 1, 4, 4)), rng.random((1, 3, 1, 1))
    shown = {"a": a, "b": b}, {"a": a[..., ::-1], "b": b}, {"a": a, "b": -b}
    pictures = [pictured(x, each) for each in shown]
    places = [np.argwhere((other != pictures[0]).any(-1)).min(0) for other in pictures[1:]]
    assert places[0][1] < places[1][1]   # the map stands left of the bars
    assert np.array_equal(pictured(x, {"a": a, "b": b}), pictures[0])


def test_cuts_and_scales():
    assert look.middle((9, 5, 7)) == (1, 2)
    assert look.middle((4, 3)) is None
    assert look.told((9, 5, 7), (1, 2)) == "slice 3 of 5 along axis 2"
    x = np.arange(2 * 9 * 5 * 7).reshape(2, 9, 5, 7)
    np.testing.assert_array_equal(look.flat(x, (1, 2)), x[:, :, 2])
    np.testing.assert_array_equal(look.flat(x, (1, 9), (18, 10, 14)), x[:, :, 4])   # counted in a map twice as fine
    assert look.flat(x[:, 0, 0], None).shape == (2, 1, 7)
    assert look.numbers(0.0, 0.98) == ["0.00", "0.98"]
    assert look.numbers(0.5001, 0.5012) == ["0.5001", "0.5012"]
    assert look.numbers(0.5, 0.5) == ["0.50", "0.50"]


def test_what_is_shown_lies_between_0_and_1():
    for x in (np.zeros((1, 3, 4)), np.full((3, 3, 4), np.inf), np.array([[[np.nan, 1.0], [2.0, 1e9]]])):
        shown = look.visible(x)
        assert shown.shape == (*x.shape[1:], 3)
        assert shown.min() >= 0
        assert shown.max() <= 1
    grey = look.visible(np.random.default_rng(0).integers(0, 60000, (2, 9, 9), np.uint16))
    assert np.ptp(grey) == 1
    assert (grey[..., 0] == grey[..., 2]).all()


# ---- classes over an image -------------------------------------------------------------------------


def overlaid(image, mask):
    return imread(io.BytesIO(picture.draw(image, mask, "title")))


def test_the_overlay_colours_classes_and_leaves_the_first():
    image = np.full((1, 40, 40), 0.5)
    image[:, :2], image[:, -2:] = 0, 1
    none, half = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    half[:, 20:] = 1
    plain, tinted = overlaid(image, none)[..., :3], overlaid(image, half)[..., :3]
    grey = np.ptp(plain, axis=2) == 0
    assert grey[:, : grey.shape[1] // 2].all()
    rows, columns = np.nonzero(np.ptp(tinted[100:-80], axis=2) > 0.1)
    assert columns.min() > 0.7 * tinted.shape[1]   # the right half of the right panel
    assert rows.size > 40 * 40


@pytest.mark.parametrize("classes", [2, 12, 40])
def test_overlays_of_many_classes_and_of_volumes(classes):
    colors = picture.palette(classes)
    assert len({tuple(c) for c in colors[1:]}) == classes - 1
    rng = np.random.default_rng(0)
    few = overlaid(rng.random((3, 8, 9)), rng.integers(0, 2, (8, 9)))
    many = overlaid(rng.random((3, 8, 9)), np.arange(72).reshape(8, 9) % classes)
    assert many.shape[0] >= few.shape[0]   # the legend grows
    assert overlaid(rng.random((1, 8, 9, 4)), rng.integers(0, classes, (8, 9, 4))).shape[1] > many.shape[1]


@pytest.mark.parametrize("spacing", [(), (1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (0.5, 3.0, 1.0)])
def test_slices_of_volumes_are_drawn_to_the_scale_of_their_voxels(spacing, monkeypatch):
    """The share of width and height that each slice takes is that of its millimetres."""
    drawn = []
    monkeypatch.setattr(look, "png", lambda figure, dpi: drawn.append(figure))
    size, millimetres = (16, 12, 8), np.array((16, 12, 8)) * (spacing or (1.0, 1.0, 1.0))
    picture.draw(np.random.default_rng(0).random((1, *size)), np.ones(size, np.uint8), "scan", spacing)
    (figure,) = drawn
    figure.canvas.draw()
    for cut, ax in enumerate(figure.axes):
        box = ax.get_window_extent()
        sides = np.delete(millimetres, cut)
        assert box.height / box.width == pytest.approx(sides.min() / sides.max(), rel=1e-3)


@pytest.mark.parametrize(("spacing", "ratio"), [((), 8 / 12), ((1.0, 2.0, 1.0), 16 / 12), ((5.0, 1.0, 1.5), 8 / 18)])
def test_maps_of_volumes_are_drawn_to_the_scale_of_their_voxels(spacing, ratio, monkeypatch):
    drawn = []
    monkeypatch.setattr(look, "png", lambda figure, dpi: drawn.append(figure))
    image = np.random.default_rng(0).random((1, 4, 8, 12))   # cut along the first axis
    maps.draw(image, {"skip": image[None]}, "scan", spacing)
    (figure,) = drawn
    for ax in figure.axes[:2]:
        box = ax.get_window_extent()
        assert box.height / box.width == pytest.approx(ratio, rel=1e-3)
