"""The command that trains networks: train."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer  # noqa: TID253

from ..contract import choice, shown
from ..data import parse_labels
from ..train.data import NORMALISATIONS
from ..train.settings import LOSSES, OPTIMIZERS, PRECISIONS, RECIPES, SCHEDULES, Settings
from .shared import Backend, backend_option, numbers, say


def _one_of(words: tuple[str, ...], what: str = "") -> Any:
    """An option of one of these words; `Settings` refuses others."""
    return typer.Option(metavar="NAME", help=f"{what}{', '.join(words)}.")


def train(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of images and masks; built-in phantoms unless given."),
    ] = None,
    backend: Annotated[Backend | None, backend_option("The framework; torch unless given.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for what comes out.")] = Path("attzoo-run"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, however it was stopped; the rest is known.")
    ] = False,
    recipe: Annotated[str | None, _one_of(tuple(RECIPES), "Options by name, which others override: ")] = None,
    dims: Annotated[int | None, typer.Option(metavar="2|3", help="Pictures or volumes.  [2]")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="H,W", help="Resize to this; as the files are unless given, phantoms 64,64.")
    ] = None,
    classes: Annotated[int | None, typer.Option(metavar="K", help="As many as the masks have unless given.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="V,V,..", help="Mask values in order of classes, 0,255 say, or colours, 0,0,0;255,0,0."),
    ] = None,
    validation: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Kept to judge by, where DIR says not what.  [0.2]")
    ] = None,
    phantoms: Annotated[int | None, typer.Option(metavar="N", help="Without --data, how many.  [160]")] = None,
    normalise: Annotated[str | None, _one_of(NORMALISATIONS, "Per image and channel, [zscore]: ")] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip", help="Mirror --data at random: pictures left to right, volumes all ways.  [flip]"
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="A published U-Net; `attzoo info unet` has them.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="A,B,..", help="Of every level, from the finest.  [16,32,64]")
    ] = None,
    skip: Annotated[
        str | None, typer.Option(metavar="NAME", help="Gate on the skips, or `none`.  [attention_gate]")
    ] = None,
    block: Annotated[
        str | None, typer.Option(metavar="NAME", help="Block after the convolutions, or `none`.  [none]")
    ] = None,
    net: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any other argument of the U-Net, as initializer=xavier; repeatable."),
    ] = None,
    loss: Annotated[str | None, _one_of(LOSSES, "[both], of cross-entropy and Dice: ")] = None,
    optimizer: Annotated[str | None, _one_of(OPTIMIZERS, "[adam]: ")] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Learning rate.  [0.001]")] = None,
    momentum: Annotated[float | None, typer.Option(metavar="M", help="Of sgd.  [0]")] = None,
    decay: Annotated[float | None, typer.Option(metavar="D", help="Of weights, of adamw.  [0.01]")] = None,
    schedule: Annotated[str | None, _one_of(SCHEDULES, "Of the rate, [constant]: ")] = None,
    every: Annotated[int | None, typer.Option(metavar="N", help="Epochs, of schedule step.  [30]")] = None,
    factor: Annotated[float | None, typer.Option(metavar="F", help="Of schedule step.  [0.1]")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the data.  [20]")] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Images at once, over all devices.  [8]")] = None,
    accumulate: Annotated[int | None, typer.Option(metavar="N", help="Batches that make one step.  [1]")] = None,
    precision: Annotated[str | None, _one_of(PRECISIONS, "[float32]: ")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(metavar="N", help="Keep every N-th epoch's network, too.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="All chance follows from it.  [0]")] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that read ahead.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of the CPU; all unless given.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard, too.")] = False,
) -> None:
    """Train a U-Net that segments images or volumes.

    \b
    DIR holds files of equal names in
      images, masks                 of which --validation are kept to judge by
      train_images, train_labels,
      valid_images, valid_labels    as CamVid does

    Images are PNG, TIFF, JPEG, BMP, GIF, WebP, PNM or JPEG 2000, volumes .npy or .nii.gz. Masks hold the index of
    every pixel's class, 0, 1, 2 and so on, 255 where none counts; for other values or colours set --labels, for black
    and white ones --labels 0,255. Options in [brackets] are taken unless given.

    --out gets the best network as a file that either framework opens, a CSV and a picture of the curves. Several
    GPUs: torchrun --nproc-per-node N -m attzoo train, or with Keras on TensorFlow as it is.
    """   # noqa: D301, click reads the backspace
    from ..train.run import summary
    from ..train.run import train as run
    from ..train.state import agreed

    given: dict[str, Any] = {
        "backend": backend and str(backend), "data": data and str(data.resolve()), "dims": dims,
        "size": numbers("size", size), "classes": classes,
        "labels": None if labels is None else [*parse_labels(labels)], "validation": validation, "phantoms": phantoms,
        "normalise": normalise, "flip": flip, "variant": variant, "channels": numbers("channels", channels),
        "loss": loss, "optimizer": optimizer, "rate": rate, "momentum": momentum, "decay": decay,
        "schedule": schedule, "every": every, "factor": factor, "epochs": epochs, "batch": batch,
        "accumulate": accumulate, "precision": precision, "checkpoint_every": checkpoint_every, "seed": seed,
    }   # fmt: skip
    network = dict(map(_argument, net or ()))
    network |= {name: None if word == "none" else word for name, word in {"skip": skip, "block": block}.items() if word}
    given = _recipe(recipe) | {name: value for name, value in given.items() if value is not None}
    settings = agreed(out, given, network) if resume else Settings(**given, network=network)
    if threads:   # read by the frameworks when they load
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        run(settings, out, resume=resume, workers=workers, tensorboard=tensorboard)
    except KeyboardInterrupt:
        typer.echo(f"stopped; to go on: attzoo train --resume --out {out}", err=True)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":   # of several processes of torchrun, one speaks
        lines, is_whole = summary(out)
        say("\n".join(lines))
        if not is_whole:
            raise typer.Exit(1)


def _recipe(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    settings = RECIPES[choice("recipe", name, tuple(RECIPES))].settings
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _argument(text: str) -> tuple[str, Any]:
    """("dropout", 0.1) from "dropout=0.1": JSON, or else a word."""
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"expected NAME=VALUE, got {shown(text)}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, None if value == "none" else value
