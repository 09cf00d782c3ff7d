"""Metrics from confusion matrices, the plot of the curves and the CSV."""

import io

import numpy as np
import pytest
from PIL import Image

from attzoo.train import output, report
from attzoo.train.settings import Settings
from attzoo.train.validation import Validation, merge, worst


def test_metrics_of_a_confusion_matrix():
    accuracy, iou, dice = report.metrics(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    assert accuracy == 9 / 12
    assert iou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert dice == pytest.approx([12 / 15, 6 / 9, None])
    assert report.metrics(np.zeros((2, 2), int)) == (0.0, 0.0, [None, None])


@pytest.mark.parametrize("counts", [[[6, 2, 1], [1, 3, 0], [0, 0, 0]], [[6, 1, 0], [2, 3, 0], [1, 0, 0]]])
def test_class_that_is_only_predicted_or_never_predicted_has_iou_0(counts):
    """Computed by hand: the IoUs are 6/10, 3/6 and 0/1."""
    accuracy, iou, dice = report.metrics(np.array(counts))
    assert accuracy == pytest.approx(9 / 13)
    assert iou == pytest.approx((6 / 10 + 3 / 6 + 0) / 3)
    assert dice == pytest.approx([12 / 16, 6 / 9, 0])


@pytest.mark.parametrize("classes", [2, 12])
def test_curves_are_a_png_and_the_csv_has_all_columns(classes):
    counts = np.eye(classes, dtype=int) + 1
    counts[1] = counts[:, 1] = 0
    rows = [report.row(epoch, 0.1, 1 / epoch, counts, Validation(counts), 1.0) for epoch in (1, 2, 3)]
    zeros = np.zeros_like(counts)
    assert report.curves([report.row(1, 0.1, 0.0, zeros, Validation(zeros), 1.0)], "zeros")   # without a warning
    picture = Image.open(io.BytesIO(report.curves(rows, "nets")))
    assert picture.format == "PNG"
    assert min(picture.size) > 300
    lines = report.as_csv(rows).decode().splitlines()
    assert lines[0] == "epoch,rate,loss,validation_loss,train_accuracy,validation_accuracy,mean_iou," + ",".join(
        f"dice_{k}" for k in range(classes)
    ) + ",seconds"
    assert lines[1].split(",")[8] == ""


@pytest.mark.parametrize("name", ["$a$", "m\udce9", "\u56fe", "a$b"])
def test_curves_are_plotted_for_data_of_any_name(name):
    row = report.row(1, 0.1, 1.0, np.eye(2), Validation(np.eye(2)), 1.0)
    title = output._title(Settings(data=f"/data/{name}"))
    assert report.curves([row], title) != report.curves([row], "other")


def test_validation_counts_images_and_losses():
    """Two images of two classes, in batches of one and in two processes; the Dice is computed by hand."""
    first, second = np.array([[6, 2], [1, 3]]), np.array([[8, 0], [2, 0]])
    whole = Validation.empty(2)
    whole.add(np.stack([first, second]), [[6.0, 20.0], [1.0, 2.0]])
    assert whole.loss == 6 / 20 + 1 / 2
    parts = []
    for counts, terms in ((first, [[2.0, 12.0], [0.25, 1.0]]), (second, [[4.0, 8.0], [0.75, 1.0]])):
        parts.append(Validation.empty(2))
        parts[-1].add(counts[None], terms)
    for validation in (whole, merge([parts[0], parts[1]])):
        assert validation.loss == 6 / 20 + 1 / 2
        assert validation.confusion.tolist() == [[14, 2], [3, 3]]
        rows = validation.cases(["a.png", "b.png"], 4)
        assert rows == [
            {"image": "a.png", "epoch": 4, "dice": 6 / 9, "dice_0": 12 / 15, "dice_1": 6 / 9},
            {"image": "b.png", "epoch": 4, "dice": 0.0, "dice_0": 16 / 18, "dice_1": 0.0},
        ]
    assert worst(rows, 1).endswith("in epoch 4: b.png 0.000")
    assert worst(rows).endswith(": b.png 0.000, a.png 0.667")
    assert Validation.empty(2).loss == 0.0
    assert worst([]) == ""


def test_images_of_several_processes_are_in_their_order():
    parts = [Validation.empty(2) for _ in range(3)]
    for image in range(5):   # process r has the images r, r + 3, ...
        parts[image % 3].add(np.full((1, 2, 2), image), np.zeros((1, 2)))
    assert [int(overlap[0, 0]) for overlap in merge(parts).overlaps] == [0, 1, 2, 3, 4]
