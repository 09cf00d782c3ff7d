"""The table in docs/deployment.md: which blocks and networks can be exported to which format, with the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import attzoo

UNET, ATTACHED = "unet", "attached"   # rows of the table besides those of the blocks


@dataclass(frozen=True)
class Target:
    """A format or tool.

    Args:
        name: heading of the column in the table.
        blocks: tests of the blocks, as "module.function" joined by spaces; "" if there are none.
        unet: tests of the U-Net, as `blocks`.
        attached: tests of an attached block, as `blocks`.
        failures: function that returns block -> reason why it cannot be exported, if there is one.

    """

    name: str
    blocks: str
    unet: str = ""
    attached: str = ""
    failures: Callable[[], Mapping[str, str]] = dict

    def tests_of(self, subject: str) -> list[tuple[str, str]]:
        """Return the module and the name of each test for a block, the U-Net or an attached block."""
        names = {UNET: self.unet, ATTACHED: self.attached}.get(subject, self.blocks)
        return [(name.rpartition(".")[0], name.rpartition(".")[2]) for name in names.split()]


def without_matrices(backend: str) -> dict[str, str]:
    """Return, by block, the reason why blocks without linear layers, which the tool of a backend quantizes, fail."""
    linear = "Linear" if backend == "torch" else "Dense"
    layers = {name: _layers(attzoo.info(name).create(8, backend=backend), backend) for name in attzoo.registry.BLOCKS}
    return {name: NO_LINEAR for name in layers if not any(type(layer).__name__ == linear for layer in layers[name])}


def _layers(block: Any, backend: str) -> list[Any]:
    """Return a block and all layers in it."""
    return [*block.modules()] if backend == "torch" else block._flatten_layers()


NO_LINEAR = "no linear layers"


TARGETS = (
    Target("torch.export", "test_torch.test_exported_block_equals_the_block",
           "test_unet_torch.test_export_with_dynamic_sizes", "test_insert.test_graphs"),
    Target("AOTInductor", *["test_exports.test_program_of_aotinductor_equals_the_network"] * 3),
    Target("jit.trace", "test_torch.test_traced_block_equals_the_block",
           "test_exports.test_traced_unet_equals_the_unet_at_other_sizes", "test_insert.test_graphs"),
    Target("ONNX", "test_torch.test_onnx_model_equals_the_block",
           "test_exports.test_onnx_model_of_a_unet_equals_the_unet", "test_insert.test_onnx"),
    Target("ONNX, older exporter", *["test_exports.test_onnx_model_of_the_older_exporter_equals_the_network"] * 3),
    Target("int8, PyTorch", *["test_exports.test_dynamic_quantization_changes_only_linear_layers"] * 3,
           failures=partial(without_matrices, "torch")),
    Target("SavedModel", "test_keras.test_saved_model_with_dynamic_sizes_equals_the_model",
           "test_unet_keras.test_saved_model_accepts_every_size",
           "test_insert_keras.test_saved_model_and_litert_model_of_an_attached_block_equal_the_model"),
    Target("LiteRT", "test_keras.test_litert_model_with_fixed_sizes_equals_the_model",
           "test_unet_keras.test_litert_model_of_a_unet_equals_the_unet",
           "test_insert_keras.test_saved_model_and_litert_model_of_an_attached_block_equal_the_model"),
    Target("int8, Keras", "test_keras_quantize.test_quantized_block_can_be_saved_and_loaded",
           "test_keras_quantize.test_quantized_unet_can_be_saved_and_loaded",
           "test_insert_keras.test_quantized_attached_block_can_be_saved_and_loaded",
           failures=partial(without_matrices, "keras")),
)   # fmt: skip


def subjects() -> list[str]:
    """Return the names of the table's rows."""
    return [*attzoo.registry.BLOCKS, UNET, ATTACHED]


def cells(target: Target) -> dict[str, str]:
    """Return the column of a target by row: "yes", the reason why it fails, or "not tested"."""
    failures = target.failures()
    return {
        subject: failures.get(subject) or ("yes" if target.tests_of(subject) else "not tested")
        for subject in subjects()
    }


def table() -> str:
    """Return the table in Markdown."""
    columns = [cells(target) for target in TARGETS]
    lines = [["", *(target.name for target in TARGETS)], ["---"] * (1 + len(TARGETS))]
    names = {UNET: "the U-Net", ATTACHED: "an attached block"}
    lines += [[names.get(row, f"`{row}`"), *(column[row] for column in columns)] for row in subjects()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
