"""What the results of a run depend on besides its settings: framework, devices, and the content of all data files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from .best import digest_or_none
from .data import Dataset, Folder
from .files import to_nfc
from .overview import shorten
from .state import State

RESTART: Final = "start a new run in another --out"


@dataclass(frozen=True)
class Basis:
    """What the results of a run depend on besides its settings.

    Attributes:
        conditions: texts by name: the framework, the number of devices, and for each dataset the number of images with
            a checksum of their names.
        files: the path of every image and mask, by "folder/file".
        digests: the SHA-256 of every image and mask, by "folder/file".
    """

    conditions: Mapping[str, str]
    files: Mapping[str, Path]
    digests: Mapping[str, str]

    def check(self, run: State, out: Path) -> None:
        """Raise ValueError, with the difference, unless the run in folder `out` began with an equal basis.

        run: the saved state of that run.
        """
        self._check_names(run, out)
        for name in sorted(self.conditions.keys() | run.basis.keys()):
            value_before, now = run.basis.get(name), self.conditions.get(name)
            if value_before != now:
                expected = f"the {name} with which the run in {out} began, {value_before}"
                raise ValueError(f"expected {expected}, got {now}: {RESTART}")
        if changed := sorted(name for name, digest in self.digests.items() if digest != run.contents[name]):
            path, remaining = self.files[changed[0]], len(changed) - 1
            got = f"other content in {path}" + (f" and {remaining} more files" if remaining else "")
            expected = f"the images and masks that the run in {out} began with"
            raise ValueError(f"expected {expected}, got {got}: put the files back, or {RESTART}")

    def _check_names(self, run: State, out: Path) -> None:
        """Raise ValueError unless the images and masks have the names that they had when the run began."""
        names, names_before = self.digests.keys(), run.contents.keys()
        differences = {"missing": sorted(names_before - names), "new": sorted(names - names_before)}
        if lists := [f"{kind}: {shorten(paths)}" for kind, paths in differences.items() if paths]:
            expected = f"the {len(run.contents)} images and masks that the run in {out} began with"
            got = f"{len(self.digests)} files, {'; '.join(lists)}"
            raise ValueError(f"expected {expected}, got {got}: put the files back, or {RESTART}")


def basis_of(trainer: Any, training: Dataset, validation: Dataset) -> Basis:
    """Return the `Basis` of a run of a trainer on these datasets. Reads all of their files."""
    conditions = {"framework": trainer.framework, "devices": str(trainer.devices)}
    files: dict[str, Path] = {}
    for purpose, dataset in (("training", training), ("validation", validation)):
        if isinstance(dataset, Folder):
            names = json.dumps([to_nfc(image.name) for image, _ in dataset.pairs])
            conditions[f"images for {purpose}"] = f"{len(dataset)} of names {sha256(names.encode()).hexdigest()[:16]}"
            for path in dataset.files():
                name = f"{path.parent.name}/{path.name}"
                files[name if to_nfc(name) in files else to_nfc(name)] = path
    return Basis(conditions, files, {name: digest_or_none(path) or "" for name, path in files.items()})
