"""The command `attzoo train`."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import call, create_autospec

import pytest
from training import SETTINGS, skip_curves, train  # noqa: F401, pytest uses skip_curves
from typer.testing import CliRunner

from attzoo import cli
from attzoo.train import output, run
from attzoo.train.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some


def command(*arguments):
    """Call `attzoo train` in this process."""
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments)], prog_name="attzoo")


def test_command_passes_its_options_to_train(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "train", fake := create_autospec(run.train))
    monkeypatch.setattr(output, "summary", create_autospec(output.summary, return_value=(["files"], True)))
    assert command().exit_code == 0
    arguments = {"resume": False, "workers": 0, "device": None, "tensorboard": False}
    assert fake.mock_calls == [call(Settings(), Path("attzoo-run"), **arguments)]
    fake.reset_mock()
    options = (
        "--data {0} --out {0}/out --backend keras --recipe camvid --dims 2 --size 32,48 --classes 5 --validation 0.1 "
        "--patch-size 16,24 --patches 3 --foreground 0.5 --channel-files "
        "--labels 0,50,100,150,255 "
        "--normalise unit --no-flip --variant keras --channels 4,8 --skip none --block eca "
        "--net initializer=xavier --net dropout=0.1 --net norm=none --loss dice "
        "--optimizer adamw --rate 0.01 --decay 0.1 --schedule step --every 3 --factor 0.3 --epochs 7 --batch 2 "
        "--accumulate 3 --precision bfloat16 --checkpoint-every 4 --seed 5 --workers 1 --tensorboard "
        "--init {0}/w.safetensors --init-source monai --warmup 2 --clip 0.5 --patience 4 --device cuda:1"
    )
    assert command(*options.format(tmp_path).split()).exit_code == 0
    settings = Settings(
        "keras", data=str(tmp_path.resolve()), size=(32, 48), classes=5, validation=0.1, normalise="unit", flip=False,
        labels=(0, 50, 100, 150, 255), patch_size=(16, 24), patches=3, foreground=0.5,
        channel_files=True,
        variant="keras", channels=(4, 8), loss="dice", optimizer="adamw", rate=0.01,
        network={"skip": None, "block": "eca", "initializer": "xavier", "dropout": 0.1, "norm": None},
        decay=0.1, schedule="step", every=3, factor=0.3, epochs=7, batch=2, accumulate=3,
        precision="bfloat16", checkpoint_every=4, seed=5, warmup=2, clip=0.5, patience=4,
        init=str(tmp_path.resolve() / "w.safetensors"), init_source="monai",
    )   # fmt: skip
    arguments = {"resume": False, "workers": 1, "device": "cuda:1", "tensorboard": True}
    assert fake.mock_calls == [call(settings, tmp_path / "out", **arguments)]
    fake.reset_mock()
    options = "--fold 2/5 --augment --class-weights 1,2.5 --ema 0.9"
    assert command("--data", tmp_path, *options.split()).exit_code == 0
    settings = Settings(data=str(tmp_path.resolve()), fold="2/5", augment=True, class_weights=(1, 2.5), ema=0.9)
    assert fake.mock_calls[0].args[0] == settings


def test_command_resumes_a_run(monkeypatch, tmp_path):
    fake_train = create_autospec(run.train, side_effect=KeyboardInterrupt)
    settings = replace(SETTINGS, epochs=1, network={"block": "eca", "dropout": 0.1})
    train(settings, tmp_path)
    monkeypatch.setattr(run, "train", fake_train)
    result = command("--resume", "--out", tmp_path, "--batch", "4", "--rate", "0.01", "--block", "eca")
    assert fake_train.mock_calls == [call(settings, tmp_path, resume=True, workers=0, device=None, tensorboard=False)]
    assert result.exit_code == 130
    assert result.stderr == f"stopped; to continue: attzoo train --resume --out {tmp_path}\n"
    expected = f"expected the settings of the run in {tmp_path}:"
    fix = ": leave these out, or start a new run in another --out"
    for options, message in (
        (("--resume", "--out", tmp_path, "--batch", 5), f"{expected} batch 4, got 5{fix}"),
        (("--resume", "--out", tmp_path, "--block", "se"), f"{expected} block 'eca', got 'se'{fix}"),
        (("--resume", "--out", tmp_path, "--skip", "none"), f"{expected} skip at its default, got None{fix}"),
        (("--recipe", "city"), "recipe must be one of 'camvid', got 'city'"),
        (("--size", "big"), "--size must be integers separated by commas, got 'big'"),
        (("--class-weights", "1;2"), "--class-weights must be auto or numbers separated by commas, got '1;2'"),
        (("--net", "up"), "expected NAME=VALUE in --net, such as initializer=xavier, got 'up'"),
    ):
        assert str(command(*options).exception) == message


def test_command_lists_missing_files_and_fails(tmp_path, monkeypatch):
    train(replace(SETTINGS, epochs=1), tmp_path)
    monkeypatch.setattr(run, "train", create_autospec(run.train))   # does not repair files
    result = command("--resume", "--out", tmp_path)
    assert result.exit_code == 0
    *paths, worst = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert paths == [str(tmp_path / name) for name in output.FILES]
    assert worst == "lowest mean Dice of the validation images, without class 0, in epoch 1"
    (tmp_path / "best.safetensors").unlink()
    result = command("--resume", "--out", tmp_path)
    assert result.exit_code == 1
    message = f"{tmp_path}/best.safetensors: missing, should be the network of epoch 1, the best; "
    assert result.stdout.startswith(message)


def test_progress_is_a_line_for_every_epoch(tmp_path, capfd):
    run.train(SETTINGS, tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert all("  validation loss " in line for line in lines[-3:])
    assert [line.split()[:3] for line in lines[-3:]] == [["epoch", f"{epoch}/3", "loss"] for epoch in (1, 2, 3)]
    assert [line.partition(":")[0] for line in lines[:-3]] == ["data", "classes", "network", "output"]
