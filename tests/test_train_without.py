"""Training with a broken torchvision, and the confusion matrix of PyTorch."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pairs import write_pairs

from attzoo.data import IGNORE
from attzoo.train.torch import Trainer

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from attzoo import cli

def run(*arguments):
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert not end.code, end.code

data, out = sys.argv[1:]
options = "--size 8,8 --channels 2,2 --epochs 2 --batch 2 --tensorboard --normalise none".split()
run("train", "--data", data, "--out", out, *options)
run("predict", f"{out}/best.safetensors", f"{data}/images", "--out", f"{out}/predicted", "--window", "4,4")
assert "torchvision" not in sys.modules
"""


def test_training_and_prediction_work_if_torchvision_is_broken(tmp_path):
    """A torchvision that was built for another torch raises RuntimeError on import."""
    (tmp_path / "packages" / "torchvision").mkdir(parents=True)
    broken_module = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (tmp_path / "packages" / "torchvision" / "__init__.py").write_text(broken_module)
    write_pairs(tmp_path / "data", 5)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "packages", ROOT)))}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data"), str(tmp_path / "run")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3
    assert "nms" not in result.stderr


@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (2, 2), (3, 3), (7, 7)])
def test_pixels_are_counted_by_class_and_prediction(classes, outputs):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(2, outputs, 5, 6)).astype(np.float32)
    masks = rng.integers(0, classes, (2, 5, 6))
    masks[0, :2] = IGNORE
    logits[1, :, 0] = 0   # a logit of 0 is a probability of 0.5, and `predict` then predicts class 1
    expected = np.zeros((2, classes, classes), np.int64)
    for n, i, j in np.ndindex(masks.shape):
        if masks[n, i, j] != IGNORE:
            pixel = logits[n, :, i, j]
            expected[n, masks[n, i, j], pixel.argmax() if len(pixel) > 1 else int(pixel[0] >= 0)] += 1
    counts = Trainer._confusions(SimpleNamespace(classes=classes), torch.from_numpy(logits), torch.from_numpy(masks))
    np.testing.assert_array_equal(counts.numpy(), expected)
