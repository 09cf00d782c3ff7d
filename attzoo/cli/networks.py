"""The command `train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer  # noqa: TID253

from ..contract import choice, short_repr
from ..data import parse_labels
from ..train.settings import AUTO, LOSSES, OPTIMIZERS, PRECISIONS, RECIPES, SCHEDULES, Settings
from .shared import NORMALISE, Backend, backend_option, parse_integers, parse_numbers, print_path


def _one_of(words: tuple[str, ...], subject: str, note: str = "") -> Any:
    """Return a command-line option whose help text has its subject, the accepted words, and a note."""
    return typer.Option(metavar="NAME", help=f"{subject}: {', '.join(words)}.{note}")


def train(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of images and masks, see above. Default: synthetic phantoms."),
    ] = None,
    backend: Annotated[Backend | None, backend_option("Framework to train in. Default: torch.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the results.")] = Path("attzoo-run"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out with its saved settings, which do not include --device, --workers, "
            "--threads and --tensorboard.",
        ),
    ] = False,
    recipe: Annotated[
        str | None, _one_of(tuple(RECIPES), "Published settings", " Other options override them.")
    ] = None,
    dims: Annotated[int | None, typer.Option(metavar="2|3", help="2 for images, 3 for volumes.  [2]")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="[D,]H,W", help="Size to resize images to. Default: not resized; 64 per axis for phantoms."
        ),
    ] = None,
    channel_files: Annotated[
        bool | None,
        typer.Option(
            "--channel-files", help="Each channel is a file: NAME_0000.nii.gz, NAME_0001.nii.gz and so on; mask: NAME."
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Spacing in mm to resample NIfTI volumes to. Default: not resampled."),
    ] = None,
    patch_size: Annotated[
        str | None,
        typer.Option(
            metavar="[D,]H,W",
            help="Train on random crops of this size, and validate and predict in windows of it, so that images may "
            "have any size. Default: whole images.",
        ),
    ] = None,
    patches: Annotated[
        int | None, typer.Option(metavar="N", help="Crops of each image in an epoch, with --patch-size.  [4]")
    ] = None,
    foreground: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Probability that the center of a crop is a pixel of a class other than 0.  [1/3]"
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(metavar="K", help="Number of classes. Default: as many as in the masks.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="V,V,..", help="Value of each class in masks, as 0,255, or its colour, as 0,0,0;255,0,0."),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Fraction of the folder `images` for validation.  [0.2]"),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Cross-validation: validate on part I of N of the folder `images`, instead of a share --validation.",
        ),
    ] = None,
    phantoms: Annotated[
        int | None, typer.Option(metavar="N", help="Number of phantoms, if --data is not set.  [160]")
    ] = None,
    normalise: Annotated[str | None, typer.Option(metavar="NAME", help=f"{NORMALISE}  [zscore]")] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip", help="Flip at random: images left-right, volumes along each axis.  [flip]"
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="Also rotate, scale, change intensities, add noise.  [no-augment]"),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of a published U-Net; `attzoo info unet` lists them.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="A,B,..", help="Channels of each U-Net level, finest first.  [16,32,64]")
    ] = None,
    skip: Annotated[
        str | None, typer.Option(metavar="NAME", help="Gate on the skip connections, or `none`.  [attention_gate]")
    ] = None,
    block: Annotated[
        str | None, typer.Option(metavar="NAME", help="Block after the convolutions of each level, or `none`.  [none]")
    ] = None,
    net: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another U-Net argument, such as initializer=xavier; may be repeated."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights to start from, saved by attzoo for a U-Net with these arguments."),
    ] = None,
    init_source: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Library that wrote the weights of --init; `attzoo info unet` lists them."),
    ] = None,
    loss: Annotated[str | None, _one_of(LOSSES, "Loss", " `both` is cross_entropy + dice.  [both]")] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,..|auto",
            help="Weight of each class in cross_entropy and bce; auto: all pixels / (classes x its pixels).",
        ),
    ] = None,
    optimizer: Annotated[str | None, _one_of(OPTIMIZERS, "Optimizer", "  [adam]")] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Learning rate.  [0.001]")] = None,
    momentum: Annotated[float | None, typer.Option(metavar="M", help="Momentum of --optimizer sgd.  [0]")] = None,
    decay: Annotated[float | None, typer.Option(metavar="D", help="Weight decay of --optimizer adamw.  [0.01]")] = None,
    schedule: Annotated[str | None, _one_of(SCHEDULES, "Learning rate schedule", "  [constant]")] = None,
    every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Epochs between two steps of --schedule step.  [30]"),
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(metavar="F", help="Factor of the learning rate at each step of --schedule step.  [0.1]"),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs in which the rate rises linearly to --rate.  [0]")
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(metavar="NORM", help="Largest norm of the gradient of all weights. Default: no limit."),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            metavar="DECAY",
            help="Decay of an average of the weights over steps, such as 0.999. The averaged weights are validated and "
            "saved.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Number of epochs; may be larger with --resume.  [20]")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(metavar="N", help="Stop after N epochs without a higher mean IoU; may change with --resume."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images, or crops with --patch-size, per batch over all devices.  [8]"),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(metavar="N", help="Batches per optimizer step, whose gradients are averaged.  [1]")
    ] = None,
    precision: Annotated[str | None, _one_of(PRECISIONS, "Arithmetic", " Weights are float32.  [float32]")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(metavar="N", help="Save the network every N epochs, besides the best one.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of all random numbers.  [0]")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Device: cpu, cuda, cuda:1, in torch also mps. Default: a GPU, if any; Keras on TensorFlow: all.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that load images in advance.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads. Default: all.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
) -> None:
    """Train a U-Net that segments images or volumes.

    \b
    --data contains either the folders
      images, masks                 of which --validation is for validation
    or, as in CamVid, the folders
      train_images, train_labels, valid_images, valid_labels

    An image and its mask have the same name. Images are PNG, TIFF, JPEG, BMP, GIF, WebP, PNM or JPEG 2000, volumes
    .npy, .nii or .nii.gz. The value of a mask's pixel is its class, 0, 1, 2 and so on; pixels of value 255 are ignored.
    For other values or colours set --labels, for black and white masks --labels 0,255. Defaults are in [brackets].

    Writes to --out the best network as a .safetensors file for both frameworks, metrics of each epoch as a CSV
    and a plot, and the Dice of each validation image as a CSV. For several GPUs run torchrun --nproc-per-node N -m
    attzoo train; Keras on TensorFlow uses all GPUs without it.
    """   # noqa: D301, click reads the backspace
    from ..train.output import summary
    from ..train.run import train as run
    from ..train.state import settings_to_resume

    given_settings: dict[str, Any] = {
        "backend": backend and str(backend), "data": data and str(data.resolve()), "dims": dims,
        "size": parse_integers("size", size), "patch_size": parse_integers("patch-size", patch_size),
        "channel_files": channel_files, "spacing": parse_numbers("spacing", spacing), "patches": patches,
        "foreground": foreground, "classes": classes,
        "labels": None if labels is None else [*parse_labels(labels)], "validation": validation, "phantoms": phantoms,
        "fold": fold, "normalise": normalise, "flip": flip, "augment": augment, "init": init and str(init.resolve()),
        "init_source": init_source, "class_weights": _class_weights(class_weights), "warmup": warmup, "clip": clip,
        "ema": ema, "patience": patience, "variant": variant, "channels": parse_integers("channels", channels),
        "loss": loss, "optimizer": optimizer, "rate": rate, "momentum": momentum, "decay": decay,
        "schedule": schedule, "every": every, "factor": factor, "epochs": epochs, "batch": batch,
        "accumulate": accumulate, "precision": precision, "checkpoint_every": checkpoint_every, "seed": seed,
    }   # fmt: skip
    network = dict(map(_argument, net or ()))
    network |= {name: None if text == "none" else text for name, text in {"skip": skip, "block": block}.items() if text}
    given_settings = _recipe(recipe) | {name: value for name, value in given_settings.items() if value is not None}
    if resume:
        settings = settings_to_resume(out, given_settings, network)
    else:
        settings = Settings(**given_settings, network=network)
    if threads:   # frameworks read these variables on import
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        run(settings, out, resume=resume, workers=workers, device=device, tensorboard=tensorboard)
    except KeyboardInterrupt:
        typer.echo(f"stopped; to continue: attzoo train --resume --out {out}", err=True)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":   # print once, not in every process of torchrun
        lines, is_complete = summary(out)
        print_path("\n".join(lines))
        if not is_complete:
            raise typer.Exit(1)


def _recipe(name: str | None) -> dict[str, Any]:
    """Return the settings of recipe `name` with tuples as lists, {} for None. Raise ValueError for an unknown name."""
    if name is None:
        return {}
    settings = RECIPES[choice("recipe", name, tuple(RECIPES))].settings
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def _class_weights(text: str | None) -> str | list[float] | None:
    """Return the weights in the text of --class-weights, or "auto", or None for None. Raise ValueError for others."""
    if text is None or text == AUTO:
        return text
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError:
        got = short_repr(text)
        raise ValueError(f"--class-weights must be {AUTO} or numbers separated by commas, got {got}") from None


def _argument(text: str) -> tuple[str, Any]:
    """Return (name, value) of the text "NAME=VALUE" of the option --net. Raise ValueError if it has no "=".

    The value is read as JSON. If it is not JSON, "none" gives None and any other text a string.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"expected NAME=VALUE in --net, such as initializer=xavier, got {short_repr(text)}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, None if value == "none" else value
