import io

import numpy as np
import pytest
from matplotlib.image import imread

from attzoo import maps, plotting
from attzoo.predict import picture

# ---- maps ------------------------------------------------------------------------------------------


def drawn_maps(*args):
    """Return the pixels of the picture that `maps.draw` draws."""
    return imread(io.BytesIO(maps.draw(*args)))


def test_maps_are_drawn_over_lines_pictures_and_volumes():
    rng = np.random.default_rng(0)
    bars, invalid = rng.random((1, 5, 1, 1)), np.full((1, 1, 4, 6), np.nan)
    colour_picture = drawn_maps(rng.random((3, 8, 12)), {"": rng.random((2, 1, 8, 12)), "a.b": bars, "c" * 99: invalid})
    assert colour_picture.shape[2] == 4
    many_blocks_picture = drawn_maps(rng.random((1, 8, 12)), {str(i): bars for i in range(9)})
    assert many_blocks_picture.shape[0] > 1.5 * colour_picture.shape[0]   # more rows of panels
    coefficients = {"skip": rng.random((1, 3, 5, 4, 2)), "se": bars[..., None]}
    volume_picture = drawn_maps(rng.random((2, 9, 8, 4)), coefficients)
    line_picture = drawn_maps(rng.random((1, 9)), {"skip": np.full((1, 1, 9), 0.5), "se": np.full((1, 5, 1), 0.5)})
    assert np.ptp(volume_picture) == np.ptp(line_picture) == 1


def test_the_picture_of_maps_depends_on_the_coefficients():
    rng = np.random.default_rng(0)
    x, position_map, channel_map = rng.random((1, 8, 8)), rng.random((1, 1, 4, 4)), rng.random((1, 3, 1, 1))
    original = drawn_maps(x, {"a": position_map, "b": channel_map})
    changed_pictures = (
        drawn_maps(x, {"a": position_map[..., ::-1], "b": channel_map}),
        drawn_maps(x, {"a": position_map, "b": -channel_map}),
    )
    corners = [np.argwhere((changed != original).any(-1)).min(0) for changed in changed_pictures]
    assert corners[0][1] < corners[1][1]   # the map is left of the bars
    assert np.array_equal(drawn_maps(x, {"a": position_map, "b": channel_map}), original)


def test_slices_and_labels_of_scales():
    assert plotting.middle_slice((9, 5, 7)) == (1, 2)
    assert plotting.middle_slice((4, 3)) is None
    assert plotting.slice_text((9, 5, 7), (1, 2)) == "slice 3 of 5 along axis 2"
    x = np.arange(2 * 9 * 5 * 7).reshape(2, 9, 5, 7)
    np.testing.assert_array_equal(plotting.take_slice(x, (1, 2)), x[:, :, 2])
    np.testing.assert_array_equal(plotting.take_slice(x, (1, 9), (18, 10, 14)), x[:, :, 4])   # index at twice the size
    assert plotting.take_slice(x[:, 0, 0], None).shape == (2, 1, 7)
    assert plotting.tick_labels(0.0, 0.98) == ["0.00", "0.98"]
    assert plotting.tick_labels(0.5001, 0.5012) == ["0.5001", "0.5012"]
    assert plotting.tick_labels(0.5, 0.5) == ["0.50", "0.50"]


def test_visible_scales_images_to_0_and_1():
    for x in (np.zeros((1, 3, 4)), np.full((3, 3, 4), np.inf), np.array([[[np.nan, 1.0], [2.0, 1e9]]])):
        pixels = plotting.to_rgb(x)
        assert pixels.shape == (*x.shape[1:], 3)
        assert pixels.min() >= 0
        assert pixels.max() <= 1
    grey = plotting.to_rgb(np.random.default_rng(0).integers(0, 60000, (2, 9, 9), np.uint16))
    assert np.ptp(grey) == 1
    assert (grey[..., 0] == grey[..., 2]).all()
    booleans = np.arange(27).reshape(3, 3, 3) % 2 > 0
    np.testing.assert_array_equal(plotting.to_rgb(booleans), np.moveaxis(booleans, 0, -1))


# ---- classes over an image -------------------------------------------------------------------------


def drawn_overlay(image, mask):
    """Return the pixels of the picture that `picture.draw` draws."""
    return imread(io.BytesIO(picture.draw(image, mask, "title")))


def test_the_overlay_colours_all_classes_but_0():
    image = np.full((1, 40, 40), 0.5)
    image[:, :2], image[:, -2:] = 0, 1
    background, half_mask = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    half_mask[:, 20:] = 1
    plain_picture, tinted = drawn_overlay(image, background)[..., :3], drawn_overlay(image, half_mask)[..., :3]
    grey = np.ptp(plain_picture, axis=2) == 0
    assert grey[:, : grey.shape[1] // 2].all()
    rows, columns = np.nonzero(np.ptp(tinted[100:-80], axis=2) > 0.1)
    assert columns.min() > 0.7 * tinted.shape[1]   # the right half of the right panel
    assert rows.size > 40 * 40


@pytest.mark.parametrize("classes", [2, 12, 40])
def test_overlays_with_many_classes_and_of_volumes_are_larger(classes):
    colors = picture.palette(classes)
    assert len({tuple(c) for c in colors[1:]}) == classes - 1
    rng = np.random.default_rng(0)
    few_classes = drawn_overlay(rng.random((3, 8, 9)), rng.integers(0, 2, (8, 9)))
    many_classes_picture = drawn_overlay(rng.random((3, 8, 9)), np.arange(72).reshape(8, 9) % classes)
    assert many_classes_picture.shape[0] >= few_classes.shape[0]   # the legend grows
    volume_picture = drawn_overlay(rng.random((1, 8, 9, 4)), rng.integers(0, classes, (8, 9, 4)))
    assert volume_picture.shape[1] > many_classes_picture.shape[1]


@pytest.mark.parametrize("spacing", [(), (1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (0.5, 3.0, 1.0)])
def test_overlays_of_volumes_are_drawn_with_the_spacing_of_voxels(spacing, monkeypatch):
    """Height divided by width is that in millimetres."""
    figures = []
    monkeypatch.setattr(plotting, "png", lambda figure, dpi: figures.append(figure))
    size, millimetres = (16, 12, 8), np.array((16, 12, 8)) * (spacing or (1.0, 1.0, 1.0))
    picture.draw(np.random.default_rng(0).random((1, *size)), np.ones(size, np.uint8), "scan", spacing)
    (figure,) = figures
    figure.canvas.draw()
    for cut, ax in enumerate(figure.axes):
        box = ax.get_window_extent()
        sides = np.delete(millimetres, cut)
        assert box.height / box.width == pytest.approx(sides.min() / sides.max(), rel=1e-3)


@pytest.mark.parametrize(("spacing", "ratio"), [((), 8 / 12), ((1.0, 2.0, 1.0), 16 / 12), ((5.0, 1.0, 1.5), 8 / 18)])
def test_maps_of_volumes_are_drawn_with_the_spacing_of_voxels(spacing, ratio, monkeypatch):
    figures = []
    monkeypatch.setattr(plotting, "png", lambda figure, dpi: figures.append(figure))
    image = np.random.default_rng(0).random((1, 4, 8, 12))   # cut along the first axis
    maps.draw(image, {"skip": image[None]}, "scan", spacing)
    (figure,) = figures
    for ax in figure.axes[:2]:
        box = ax.get_window_extent()
        assert box.height / box.width == pytest.approx(ratio, rel=1e-3)
