"""Draw docs/blocks/ from the blocks' cards: python docs/generate.py"""

from __future__ import annotations

from pathlib import Path

from attzoo import info, registry

HERE = Path(__file__).parent / "blocks"
NOTE = "<!-- Drawn by docs/generate.py from attzoo/blocks/{name}: change that, not this. -->"


def pages() -> dict[str, str]:
    """File name -> text: a page per built-in block, and README.md, which lists them."""
    rows = ["| block | what it does | parameters | MACs |", "| --- | --- | ---: | ---: |"]
    drawn = {}
    for name in registry.NETWORKS:
        drawn[f"{name}.md"] = f"{NOTE.format(name=name).replace('blocks/', '')}\n\n{info(name).markdown()}\n{FOOT}\n"
    for name in registry.BLOCKS:
        card = info(name)
        rows.append(f"| [{name}]({name}.md) | {card.summary} | {card.parameters():,} | {card.macs():,} |")
        drawn[f"{name}.md"] = f"{NOTE.format(name=name)}\n\n{card.markdown()}\n{FOOT}\n"
    return drawn | {"README.md": f"{NOTE.format(name='')}\n\n{HEAD}\n\n" + "\n".join(rows) + f"\n\n{FOOT}\n"}


HEAD = """# The blocks

Parameters at 64 channels, and multiply-adds (MACs) for one image of 64 x 56 x 56; the gate's two inputs are both of
that size."""
FOOT = "The letters of the shapes are explained [once for all pages](../index.md#letters)."


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for old in HERE.glob("*.md"):
        old.unlink()
    for file, text in pages().items():
        (HERE / file).write_text(text, encoding="utf-8")
