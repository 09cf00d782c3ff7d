"""The best network of a run: which epoch it is of, and what happens when its file is lost."""

from dataclasses import replace
from unittest.mock import create_autospec

import pytest
from training import SETTINGS, contents, results, set_scores, skip_curves, train  # noqa: F401, pytest uses skip_curves

import attzoo
from attzoo.train import output, report, state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some


@pytest.fixture
def train_with_scores(tmp_path, monkeypatch):
    """Return a function that trains 4 epochs with given mean IoUs; with `stop_after`, it interrupts the run."""
    original = report.row

    def train_run(scores, stop_after=4, **options):
        def row(epoch, *args):
            if epoch > stop_after:
                raise KeyboardInterrupt
            return original(epoch, *args) | {"mean_iou": scores[epoch - 1]}

        monkeypatch.setattr(report, "row", row)
        if stop_after == 4:
            return train(replace(SETTINGS, epochs=4), tmp_path, **options)
        with pytest.raises(KeyboardInterrupt):
            train(replace(SETTINGS, epochs=4), tmp_path, **options)
        return None

    return train_run


@pytest.mark.parametrize(("scores", "best"), [((0.25, 0.5, 0.375), 2), ((0.5, 0.5, 0.25), 1), ((0.0, 0.0, 0.0), 1)])
def test_best_network_is_of_the_first_epoch_with_the_highest_mean_iou(scores, best, monkeypatch, tmp_path):
    set_scores(monkeypatch, *scores)
    train(replace(SETTINGS, checkpoint_every=1), tmp_path)
    networks = [(tmp_path / f"epoch-00{epoch}.safetensors").read_bytes() for epoch in (1, 2, 3)]
    assert len(set(networks)) == 3
    assert networks.index((tmp_path / "best.safetensors").read_bytes()) + 1 == best


def test_epoch_is_repeated_if_its_network_was_not_written(tmp_path, monkeypatch):
    """Otherwise a resumed run would have an older network as the best one."""
    set_scores(monkeypatch, 0.25, 0.5, 0.375)
    train(SETTINGS, tmp_path / "whole")
    original, calls = output.portable.save, []

    def save(network, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        original(network, path)

    with monkeypatch.context() as patch:
        patch.setattr(output.portable, "save", save)
        with pytest.raises(OSError, match="No space left"):
            train(SETTINGS, tmp_path / "full")
    assert len(state.load(tmp_path / "full").history) == 1
    train(SETTINGS, tmp_path / "full", resume=True)
    assert results(tmp_path / "full") == results(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["deleted", "corrupt", "exchanged"])
def test_lost_best_network_is_reported_and_replaced(damage, train_with_scores, tmp_path, capfd):
    train_with_scores([0.1, 0.9, 0.3], stop_after=3)
    path = tmp_path / "best.safetensors"
    data = path.read_bytes()
    assert state.load(tmp_path).best.epoch == 2
    if damage == "deleted":
        path.unlink()
    elif damage == "corrupt":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        attzoo.save(attzoo.create("unet", 1, 4, backend="torch", channels=(4, 8)), path)
    lines, is_complete = output.summary(tmp_path)
    got = "missing" if damage == "deleted" else "not the file that was saved"
    assert not is_complete
    assert f"{path}: {got}, should be the network of epoch 2, the best; " in lines[0]
    capfd.readouterr()
    train_with_scores([0.1, 0.9, 0.3, 0.2], resume=True)
    err = capfd.readouterr().err
    assert err == f"{path} is {got}: the network of epoch 2, the best, is lost; the file now holds epoch 3, the last\n"
    lines, is_complete = output.summary(tmp_path)
    assert is_complete
    assert lines[0].startswith(f"{path}: the network of epoch 3, the best from epoch 3 on; either framework opens it")
    assert attzoo.load(path, backend="torch").spec.out_channels == 4


def test_better_epoch_after_a_loss_replaces_the_network(train_with_scores, tmp_path):
    train_with_scores([0.1, 0.9, 0.3], stop_after=3)
    (tmp_path / "best.safetensors").unlink()
    train_with_scores([0.1, 0.9, 0.3, 0.4], resume=True)
    best = state.load(tmp_path).best
    assert (best.epoch, best.since) == (4, 3)
    arrays = state.load(tmp_path).arrays
    expected = {
        name.removeprefix("network."): array.tobytes() for name, array in arrays.items() if name.startswith("network.")
    }
    weights = attzoo.weights(attzoo.load(tmp_path / "best.safetensors", backend="torch"))
    assert {name: array.tobytes() for name, array in weights.items()} == expected


def test_kill_between_state_and_best_network_loses_nothing(train_with_scores, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(output.best, "replace", create_autospec(output.best.replace, side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_with_scores([0.5, 0.1, 0.1, 0.1])
    assert not (tmp_path / "best.safetensors").exists()
    assert len(state.load(tmp_path).history) == 1
    train_with_scores([0.5, 0.1, 0.1, 0.1], resume=True)
    assert "lost" not in capfd.readouterr().err
    assert (state.load(tmp_path).best.epoch, state.load(tmp_path).best.since) == (1, 1)
    assert output.summary(tmp_path)[1]


def test_temporary_file_of_a_killed_run_is_not_a_run(tmp_path):
    (tmp_path / ".attzoo-0123456789abcdef-settings.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"expected a run to resume in .*, got none"):
        train(SETTINGS, tmp_path, resume=True)
    train(replace(SETTINGS, epochs=1), tmp_path)
    assert set(contents(tmp_path)) == set(output.FILES)
