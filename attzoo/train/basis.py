"""What a run follows from beside its settings: framework, devices, and the contents of all images and masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from .best import digest_if_there
from .data import Dataset, Folder
from .files import composed
from .overview import listed
from .state import State

ANEW: Final = "train anew into another --out"


@dataclass(frozen=True)
class Basis:
    """words: by name. files: every image and mask by the names of its folder and its own. contents: their digests."""

    words: Mapping[str, str]
    files: Mapping[str, Path]
    contents: Mapping[str, str]

    def check(self, run: State, out: Path) -> None:
        """Raise ValueError, naming what differs, unless the run in `out` began with the same."""
        names, known = self.contents.keys(), run.contents.keys()
        differences = {"missing": sorted(known - names), "new": sorted(names - known)}
        if apart := [f"{what}: {listed(some)}" for what, some in differences.items() if some]:
            wanted = f"the {len(run.contents)} images and masks that the run in {out} began with"
            got = f"{len(self.contents)} files, {'; '.join(apart)}"
            raise ValueError(f"expected {wanted}, got {got}: put the files back, or {ANEW}")
        for name in sorted(self.words.keys() | run.basis.keys()):
            was, now = run.basis.get(name), self.words.get(name)
            if was != now:
                raise ValueError(f"expected what the run in {out} began with: {name}: {was}, got {now}: {ANEW}")
        if changed := sorted(name for name, digest in self.contents.items() if digest != run.contents[name]):
            path, more = self.files[changed[0]], len(changed) - 1
            got = f"other content in {path}" + (f" and {more} more" if more else "")
            wanted = f"the images and masks that the run in {out} began with"
            raise ValueError(f"expected {wanted}, got {got}: put the files back, or {ANEW}")


def basis_of(trainer: Any, training: Dataset, validation: Dataset) -> Basis:
    """What a run on these data follows from; reads all of their files."""
    words = {"framework": trainer.framework, "devices": str(trainer.devices)}
    files: dict[str, Path] = {}
    for part, dataset in (("training", training), ("validation", validation)):
        if isinstance(dataset, Folder):
            names = json.dumps([composed(image.name) for image, _ in dataset.pairs])
            words[f"images for {part}"] = f"{len(dataset)} of names {sha256(names.encode()).hexdigest()[:16]}"
            for path in (path for pair in dataset.pairs for path in pair):
                name = f"{path.parent.name}/{path.name}"
                files[name if composed(name) in files else composed(name)] = path
    return Basis(words, files, {name: digest_if_there(path) or "" for name, path in files.items()})
