"""Write and read folders of huggingface_hub with a U-Net: config.json, model.safetensors and README.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ..adapters import adapter
from ..contract import choice, shorten, upgraded
from ..extras import missing
from ..hints import nearest
from . import spec

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
DTYPES: Final = ("float32", "float64", "float16", "bfloat16")
CARD: Final = """\
---
{{ card_data }}
---

# A U-Net of attzoo

The input has {{ in_channels }} channels, the output {{ out_channels }}, and both {{ spatial_dims }} spatial axes.

```python
from attzoo.torch import UNet

net = UNet.from_pretrained(FOLDER)   # this folder, or the name of this repository on the Hugging Face Hub
```

Its arguments, as in config.json:

```json
{{ config }}
```
"""
CARD_OPTIONS: Final = {
    "model_card_template": CARD, "library_name": "attzoo", "pipeline_tag": "image-segmentation",
}   # fmt: skip


def save_pretrained(cls: Any, net: Any, folder: str | os.PathLike[str], **options: Any) -> Any:
    """Write a U-Net `net` of class `cls` to a folder, as `UNet.save_pretrained` documents."""
    hub_class, torch_adapter = _hub_class(cls, "UNet.save_pretrained"), adapter("torch")
    torch_adapter.check_layers(net, cls)
    arrays, dtype = torch_adapter.read(net), torch_adapter.dtype(net)
    config = _content(net, dtype)
    _check_replaceable(Path(folder))
    hub_net = _create(hub_class, config)
    torch_adapter.write(hub_net, arrays)
    _remove_unchanged_card(hub_class, Path(folder))
    card = _card(config) | options.pop("model_card_kwargs", {})
    return hub_net.save_pretrained(folder, config=config, model_card_kwargs=card, **options)


def _content(net: Any, dtype: str) -> dict[str, Any]:
    """Return the content of config.json for a U-Net, with lists for tuples, as JSON has them."""
    content: dict[str, Any] = json.loads(json.dumps({"dtype": dtype, **net.spec.config()}))
    return content


def _card(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for the placeholders of the template CARD, from the content of config.json."""
    card = {name: config[name] for name in ("in_channels", "out_channels", "spatial_dims")}
    return card | {"config": json.dumps(config, indent=2)}


def _remove_unchanged_card(cls: type[Any], folder: Path) -> None:
    """Remove the card of the network that is replaced, which huggingface_hub keeps, unless a user changed it."""
    card, config = folder / "README.md", folder / CONFIG
    if not (card.exists() and config.exists()):
        return
    arguments = json.loads(config.read_text(encoding="utf-8"))
    net = _create(cls, arguments)
    expected_card = net.generate_model_card(**_card(_content(net, arguments.get("dtype", "float32")))).content
    text = card.read_text(encoding="utf-8", errors="replace")   # a user may have written it in another encoding
    if expected_card.strip() == text.strip():
        card.unlink()


def _create(cls: type[Any], config: Mapping[str, Any]) -> Any:
    """Return the network for the content of config.json, without changing the state of torch's random numbers."""
    import torch

    with torch.random.fork_rng(devices=[]):
        return cls(**config)


def from_pretrained(cls: Any, source: str | os.PathLike[str], **options: Any) -> Any:
    """Return the U-Net of class `cls` from a folder or repository, as `UNet.from_pretrained` documents."""
    hub_class = _hub_class(cls, "UNet.from_pretrained")
    _check_folder(Path(source) if Path(source).is_dir() else _config_of_repository(source, options).parent)
    loaded_net = hub_class.from_pretrained(source, **{"strict": True} | options)
    net = cls(**loaded_net.spec.config(), device="meta")
    net.load_state_dict(loaded_net.state_dict(), assign=True)
    return net.eval()


def _config_of_repository(source: str | os.PathLike[str], options: Mapping[str, Any]) -> Path:
    """Return the downloaded config.json of a repository. Raise FileNotFoundError if there is none.

    options: as in `from_pretrained`.
    """
    from huggingface_hub import hf_hub_download

    names = ("revision", "token", "cache_dir", "local_files_only")
    try:
        return Path(hf_hub_download(str(source), CONFIG, **{name: options[name] for name in names if name in options}))
    except Exception as err:   # huggingface_hub raises exceptions of many types
        raise FileNotFoundError(_missing_text(Path(source), err)) from err


def _missing_text(path: Path, err: Exception) -> str:
    """Return the message for a path that is no folder, if huggingface_hub raises `err` for a repository of its name."""
    expected = "expected a folder that UNet.save_pretrained wrote, or the name of such a repository on the Hub"
    if path.is_file():
        return f"{expected}, got the file {str(path)!r}: give its folder, {str(path.parent)!r}"
    near = nearest(path.name, [config.parent.name for config in path.parent.glob(f"*/{CONFIG}")])
    reason = ""
    if type(err).__name__ != "HFValidationError":   # raised for a path that cannot be the name of a repository
        text = shorten(str(err).strip().partition("\n")[0], 300)
        reason = f"; the repository of this name cannot be read: {type(err).__name__}: {text}"
    return f"{expected}, got {str(path)!r}, which is no folder{near}{reason}"


@lru_cache
def _hub_class(cls: Any, needed_by: str) -> type[Any]:
    """Return a subclass of `cls`, the torch U-Net, that is also huggingface_hub's mixin.

    Its arguments are the entries of config.json. needed_by: name of the calling method, for the error if the package is
    missing.
    """
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ModuleNotFoundError as err:
        if err.name != "huggingface_hub":   # a broken installation
            raise
        raise ModuleNotFoundError(missing("huggingface_hub", "hub", needed_by), name=err.name) from err

    class HubUNet(PyTorchModelHubMixin, cls, **CARD_OPTIONS):   # type: ignore[call-arg, misc, unused-ignore]
        def __init__(self, dtype: str = "float32", **arguments: Any) -> None:
            """Create the U-Net with these arguments and parameters of `dtype`."""
            import torch

            super().__init__(**_config(arguments | {"dtype": dtype}))
            self.to(getattr(torch, dtype))

    return HubUNet


def _check_replaceable(folder: Path) -> None:
    """Raise FileExistsError if a folder contains the model of another program."""
    present_files = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    if not present_files:
        return
    try:
        _check_folder(folder)
    except (OSError, ValueError, TypeError) as err:
        fix = "remove it first, or save to another folder"
        expected = f"expected only a U-Net of attzoo, or no model, in {folder}"
        raise FileExistsError(f"{expected}, got another model in {', '.join(present_files)}: {fix}") from err


def _check_folder(folder: Path) -> None:
    """Raise ValueError unless config.json in a folder describes a U-Net, and OSError if it cannot be read."""
    text = (folder / CONFIG).read_text(encoding="utf-8")
    try:
        spec.UNet(**_config(json.loads(text)))
    except (ValueError, TypeError, AttributeError, RecursionError) as err:
        raise ValueError(f"expected a U-Net of attzoo in {folder / CONFIG}, got {shorten(text, 200)}: {err}") from err


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a U-Net from the content of config.json. Check the dtype, and leave it out."""
    choice("dtype", config.get("dtype", "float32"), DTYPES)
    return upgraded(spec.UNet, {name: value for name, value in config.items() if name != "dtype"})
