"""Batches of several processes, and the loader."""

import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import write_pairs

from attzoo.train import Settings, run
from attzoo.train.batches import Batches, Loader, check_guard
from attzoo.train.data import Folder, Preparation
from attzoo.train.phantoms import Phantoms

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("count", "drop_last"), [(24, False), (23, False), (17, False), (23, True)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_parts_of_several_processes_make_the_batches_of_one_process(count, drop_last, world):
    single_process = Batches(count, 8, seed=5, drop_last=drop_last)
    orders = []
    for epoch in (0, 1, 7):
        single_process.epoch = epoch
        samplers = [Batches(count, 8, 5, True, drop_last, rank, world, epoch) for rank in range(world)]
        assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]
        batches = list(single_process)
        assert len(batches) == len(single_process) == (count // 8 if drop_last else -(-count // 8))
        for number, batch in enumerate(batches):
            parts = [keys for sampler in samplers for keys in list(sampler)[number : number + 1]]
            assert sorted(chain(*parts)) == sorted(batch)
            assert all(keys for keys in parts)
            assert len(batch) < 8 or {len(keys) for keys in parts} == {8 // world}
        keys = list(chain(*batches))
        assert len(set(keys)) == len(keys) == (16 if drop_last else count)
        assert all(key[0] == epoch and 0 <= key[1] < count for key in keys)
        assert list(single_process) == batches
        orders.append([index for _, index in keys])
    assert len({str(order) for order in orders}) == 3
    assert orders[0] != sorted(orders[0])
    assert list(Batches(count, 8, seed=6, drop_last=drop_last, epoch=7)) != list(single_process)
    assert [index for _, index in chain(*Batches(count, 8, shuffle=False))] == list(range(count))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 6, "world_size": 4}, "batch must be a multiple of the 4 processes, got 6"),
        ({"batch": 4, "rank": 2, "world_size": 2}, "rank must be less than world_size, got rank=2, world_size=2"),
        ({"batch": 12, "drop_last": True}, "at least 12 samples to fill a batch, got 10"),
        ({"batch": 0}, "batch must be >= 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(10, **arguments)


def test_loader_yields_tensors_and_does_not_change_the_default_generator(tmp_path):
    folder = Folder(write_pairs(tmp_path, 5), flip=True)
    loader = Loader(folder, Batches(5, 2))
    rng_state_before = torch.get_rng_state()
    batches = list(loader.epoch(2))
    assert torch.equal(torch.get_rng_state(), rng_state_before)
    assert [tuple(images.shape) for images, _ in batches] == [(2, 1, 8, 12)] * 2 + [(1, 1, 8, 12)]
    assert len(loader) == 3
    for keys, (images, masks) in zip(Batches(5, 2, epoch=2), batches, strict=True):
        assert (images.dtype, masks.dtype) == (torch.float32, torch.int64)
        for n, key in enumerate(keys):
            image, mask = folder[key]
            np.testing.assert_array_equal(images[n].numpy(), image)
            np.testing.assert_array_equal(masks[n].numpy(), mask)


def test_images_of_several_sizes_need_a_batch_of_one_or_a_size(tmp_path):
    pairs = [*write_pairs(tmp_path / "a", 2), *write_pairs(tmp_path / "b", 1, (6, 7))]
    folder = Folder(pairs)
    with pytest.raises(ValueError, match=r"one size to batch them, got .*0.npy of 8 x 12 and .*b.*0.npy of 6 x 7"):
        Loader(folder, Batches(3, 2))
    shapes = [tuple(masks.shape) for _, masks in Loader(folder, Batches(3, 1, shuffle=False)).epoch(0)]
    assert shapes == [(1, 8, 12), (1, 8, 12), (1, 6, 7)]
    assert [len(masks) for _, masks in Loader(Folder(pairs, Preparation((8, 8))), Batches(3, 2)).epoch(0)] == [2, 1]


class TensorFlowFolder(Folder):
    """A folder whose masks have 100 added if TensorFlow is imported."""

    def __getitem__(self, key):
        image, mask = super().__getitem__(key)
        return image, mask + 100 * ("tensorflow" in sys.modules)


def test_worker_yields_the_same_batches_and_errors_and_does_not_import_tensorflow(tmp_path):
    pairs = write_pairs(tmp_path, 4)
    arguments = {"preparation": Preparation((6, 6)), "flip": True}
    loader = Loader(Folder(pairs, **arguments), Batches(4, 2))
    worker_loader = Loader(TensorFlowFolder(pairs, **arguments), Batches(4, 2), 1)
    next(worker_loader.epoch(0))   # an epoch that does not end
    for epoch in (0, 1):
        for batch, worker_batch in zip(loader.epoch(epoch), worker_loader.epoch(epoch), strict=True):
            assert all(
                torch.equal(array, worker_array) for array, worker_array in zip(batch, worker_batch, strict=True)
            )
    pairs[2][0].write_bytes(b"")
    for failing in (loader, worker_loader):
        with pytest.raises(ValueError, match=r"^cannot read .*2.npy: ") as caught:
            list(failing.epoch(2))
        assert "\n" not in str(caught.value)


# ---- scripts without a guard -----------------------------------------------------------------------

SCRIPT = """
import sys
from attzoo.train.batches import Batches, Loader
from attzoo.train.phantoms import Phantoms

list(Loader(Phantoms(2, (8, 8)), Batches(2, 2), workers=1).epoch(0))
"""
GUARD = r'put its work under `if __name__ == "__main__":`, or set workers=0'


def test_script_without_a_main_guard_raises_with_the_fix(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    env, command = os.environ | {"PYTHONPATH": str(ROOT)}, [sys.executable, "script.py"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert re.search(rf"^RuntimeError: expected running worker processes, got one that ended: .*{GUARD}", last)


def test_training_in_a_worker_raises():
    """A worker imports the script under the name __mp_main__."""
    text = 'run.train(Settings(), "never", workers=2)'
    names = {"__name__": "__mp_main__", "run": run, "Settings": Settings}
    with pytest.raises(RuntimeError, match=f"expected no training in a worker process, .* {GUARD}"):
        exec(compile(text, "script.py", "exec"), names)
    exec(compile("check_guard(2)", "script.py", "exec"), {"__name__": "__main__", "check_guard": check_guard})
    exec(compile("check_guard(0)", "script.py", "exec"), {"__name__": "__mp_main__", "check_guard": check_guard})


def test_only_errors_of_ended_workers_are_replaced(monkeypatch):
    loader = Loader(Phantoms(2, (8, 8)), Batches(2, 2))
    for text, message in (
        ("DataLoader worker (pid(s) 1) exited unexpectedly", GUARD),
        ("DataLoader worker (pid 1) exited unexpectedly with exit code 1.", "either memory ran out: set fewer workers"),
        ("CUDA error", "^CUDA error$"),
    ):
        def failing(text=text):
            raise RuntimeError(text)
            yield

        monkeypatch.setattr(loader, "_loader", failing())
        with pytest.raises(RuntimeError, match=message):
            list(loader.epoch(0))
