"""`attzoo score` against distances between all pairs of surface pixels, and what it refuses."""

import csv

import nibabel
import numpy as np
import pytest
from pairs import write_array
from typer.testing import CliRunner

from attzoo import cli
from attzoo.data import Labels
from attzoo.predict import means, score

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some


def surface(mask):
    """Return the indices (n, D) of pixels of a mask with a neighbour along an axis that is not in it or outside."""
    padded = np.pad(mask, 1)
    pixels = []
    for index in np.argwhere(mask):
        steps = [sign * np.eye(mask.ndim, dtype=int)[axis] for axis in range(mask.ndim) for sign in (-1, 1)]
        if not all(padded[tuple(index + 1 + step)] for step in steps):
            pixels.append(index)
    return np.array(pixels)


def distances(predicted, true, spacing):
    """Return the distance from each surface pixel to the nearest of the other surface: from predicted, from true."""
    p, t = (surface(mask) * np.array(spacing) for mask in (predicted, true))
    table = np.sqrt(((p[:, None] - t[None]) ** 2).sum(-1))
    return table.min(1), table.min(0)


def expected_scores(predicted, true, spacing, tolerance):
    """Return the scores of a class by their definitions."""
    both, from_predicted, from_true = (predicted & true).sum(), *distances(predicted, true, spacing)
    return {
        "dice": 2 * both / (predicted.sum() + true.sum()),
        "iou": both / (predicted | true).sum(),
        "hausdorff95": max(np.percentile(from_predicted, 95), np.percentile(from_true, 95)),
        "surface_dice": (np.concatenate([from_predicted, from_true]) <= tolerance).mean(),
    }


def random_masks(shape, seed):
    """Return two masks with the classes 0, 1 and 2, of which the second is the first with changes."""
    generator = np.random.default_rng(seed)
    true = np.zeros(shape, np.uint8)
    true[tuple(slice(2, side - 2) for side in shape)] = 1
    true[tuple(slice(3, side // 2) for side in shape)] = 2
    predicted = np.roll(true, 1, axis=int(generator.integers(len(shape))))
    predicted[generator.random(shape) < 0.05] = 2
    return predicted, true


def write_nifti(path, mask, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([*spacing, 1.0])), path)


def assert_rows(rows, masks, spacing, tolerance):
    """Compare rows of `score` with the definitions. masks: (predicted, true) by name."""
    assert [(row["image"], row["class"]) for row in rows] == [(name, k) for name in masks for k in (1, 2)]
    for row in rows:
        predicted, true = masks[row["image"]]
        expected = expected_scores(predicted == row["class"], true == row["class"], spacing, tolerance)
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5)


def test_scores_of_pictures_equal_the_definitions(tmp_path):
    masks = {name: random_masks((13, 17), seed) for seed, name in enumerate("ab")}
    for name, (predicted, true) in masks.items():
        write_array(tmp_path / "out" / "masks" / f"{name}.npy", predicted)
        write_array(tmp_path / "truth" / f"{name}.npy", true)
    rows = score(tmp_path / "out", tmp_path / "truth", tolerance=1.0)
    assert_rows(rows, masks, (1, 1), 1.0)
    assert score(tmp_path / "out" / "masks", tmp_path / "truth") == rows
    assert score(tmp_path / "out" / "masks" / "a.npy", tmp_path / "truth" / "a.npy") == rows[:2]
    averages = means(rows)
    assert [row["class"] for row in averages] == [1, 2, "all"]
    assert averages[1]["dice"] == pytest.approx(np.mean([row["dice"] for row in rows if row["class"] == 2]))
    assert averages[2]["iou"] == pytest.approx(np.mean([row["iou"] for row in rows]))


def test_distances_of_volumes_are_in_millimetres(tmp_path):
    spacing, masks = (1.0, 2.0, 0.5), {"scan": random_masks((9, 8, 10), 3)}
    write_nifti(tmp_path / "predicted" / "scan.nii.gz", masks["scan"][0], spacing)
    write_nifti(tmp_path / "truth" / "scan.nii", masks["scan"][1], spacing)
    rows = score(tmp_path / "predicted", tmp_path / "truth", tolerance=0.5)
    assert_rows(rows, masks, spacing, 0.5)


def test_classes_that_a_mask_lacks_and_ignored_pixels(tmp_path):
    true, predicted = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    true[1:3, 1:3], true[4] = 1, 255
    predicted[1:3, 1:4], predicted[4], predicted[5, 5] = 1, 2, 3
    write_array(tmp_path / "p" / "x.npy", predicted)
    write_array(tmp_path / "t" / "x.npy", true)
    rows = score(tmp_path / "p", tmp_path / "t", classes=4)
    assert rows[0]["dice"] == pytest.approx(2 * 4 / (6 + 4))
    assert rows[1] == {
        "image": "x", "class": 2, "dice": None, "iou": None, "hausdorff95": None, "surface_dice": None,
    }   # fmt: skip
    assert rows[2] == {"image": "x", "class": 3, "dice": 0, "iou": 0, "hausdorff95": None, "surface_dice": 0}
    averages = {row["class"]: row for row in means(rows)}
    assert (averages[2]["images"], averages[2]["dice"], averages[2]["unpaired"]) == (0, None, 0)
    assert (averages["all"]["images"], averages["all"]["unpaired"]) == (2, 1)
    assert averages["all"]["hausdorff95"] == rows[0]["hausdorff95"]


def test_command_prints_means_and_writes_a_csv(tmp_path):
    predicted, true = random_masks((13, 17), 0)
    write_array(tmp_path / "p" / "x.npy", (predicted > 0).astype(np.uint8))
    write_array(tmp_path / "t" / "x.npy", 255 * (true > 0).astype(np.uint8))
    arguments = ["score", str(tmp_path / "p"), str(tmp_path / "t"), "--labels", "0,255"]
    arguments += ["--out", str(tmp_path / "scores.csv")]
    output = CliRunner().invoke(cli.app, arguments).output
    expected = expected_scores(predicted > 0, true > 0, (1, 1), 1)
    assert [line.split()[:3] for line in output.splitlines()[1:3]] == [
        ["1", "1", f"{expected['dice']:.4g}"], ["all", "1", f"{expected['dice']:.4g}"],
    ]   # fmt: skip
    with (tmp_path / "scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["hausdorff95"]) == pytest.approx(expected["hausdorff95"])
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, ValueError)
    assert "scores.csv, which exists: set --overwrite" in str(result.exception)


@pytest.mark.parametrize(("predicted", "true", "options", "message"), [
    ({"a": [0, 1]}, {"a": [0, 255]}, {}, r"a class besides 0, got only 0 and 255: .* --labels 0,255"),
    ({"a": [0, 1]}, {"a": [0, 128]}, {}, "expected class indices 0, 1, 2, ... in masks, got 0"),
    ({"a": [0, 1]}, {"b": [0, 1]}, {}, r"a mask of the same name in .*p for every mask, got none for .*b.npy"),
    ({"a": [0, 1], "b": [0, 1]}, {"a": [0, 1]}, {}, r"in .*t for every mask, got none for .*b.npy"),
    ({"a": [0, 2]}, {"a": [0, 1]}, {}, r"expected classes from 0 to 1 in .*p/a.npy, got 2: set --classes"),
    ({"a": [0, 1]}, {"a": [0, 2]}, {"classes": 2}, r"expected classes from 0 to 1 in .*t/a.npy, got 2"),
    ({"a": [0, 1, 1]}, {"a": [0, 1]}, {}, "to have one size, got 2 x 3 and 2 x 2"),
    ({"a": [0, 1]}, {"a": [0, 1]}, {"tolerance": 0}, "tolerance must be"),
    ({"a": [0, 1]}, {"a": [0, 7]}, {"labels": Labels((0, 7)), "classes": 3}, "classes must be 2, the number of labels"),
])   # fmt: skip
def test_masks_that_do_not_fit_are_refused(predicted, true, options, message, tmp_path):
    for folder, masks in (("p", predicted), ("t", true)):
        for name, row in masks.items():
            write_array(tmp_path / folder / f"{name}.npy", np.array([row, row], np.uint8))
    with pytest.raises(ValueError, match=message):
        score(tmp_path / "p", tmp_path / "t", **options)


def test_paths_that_are_no_masks_are_refused(tmp_path):
    write_array(tmp_path / "p" / "a.npy", np.eye(2, dtype=np.uint8))
    for predicted, true in ((tmp_path / "p", tmp_path / "p" / "a.npy"), (tmp_path / "p", tmp_path / "none")):
        with pytest.raises(ValueError, match="expected two masks or two folders of masks, got"):
            score(predicted, true)


def test_volumes_on_other_grids_are_refused(tmp_path):
    mask = np.pad(np.ones((2, 2, 2), np.uint8), 2)
    write_nifti(tmp_path / "p" / "a.nii", mask, (1, 1, 1))
    write_nifti(tmp_path / "t" / "a.nii", mask, (1, 1, 3))
    with pytest.raises(ValueError, match="on the grid of"):
        score(tmp_path / "p", tmp_path / "t")
