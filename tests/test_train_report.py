"""Metrics from confusion matrices, the plot of the curves and the CSV."""

import io

import numpy as np
import pytest
from PIL import Image

from attzoo.train import output, report
from attzoo.train.settings import Settings


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
    rows = [report.row(epoch, 0.1, 1 / epoch, counts, counts, 1.0) for epoch in (1, 2, 3)]
    zeros = np.zeros_like(counts)
    assert report.curves([report.row(1, 0.1, 0.0, zeros, zeros, 1.0)], "zeros")   # without a warning
    picture = Image.open(io.BytesIO(report.curves(rows, "nets")))
    assert picture.format == "PNG"
    assert min(picture.size) > 300
    lines = report.as_csv(rows).decode().splitlines()
    assert lines[0] == "epoch,rate,loss,train_accuracy,validation_accuracy,mean_iou," + ",".join(
        f"dice_{k}" for k in range(classes)
    ) + ",seconds"
    assert lines[1].split(",")[7] == ""


@pytest.mark.parametrize("name", ["$a$", "m\udce9", "\u56fe", "a$b"])
def test_curves_are_plotted_for_data_of_any_name(name):
    row = report.row(1, 0.1, 1.0, np.eye(2), np.eye(2), 1.0)
    title = output._title(Settings(data=f"/data/{name}"))
    assert report.curves([row], title) != report.curves([row], "other")
