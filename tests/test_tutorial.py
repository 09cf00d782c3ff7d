"""The package of docs/adding-a-block.md can be installed with pip, and its block can then be used."""

import os
import subprocess
import sys
import venv
from pathlib import Path
from sysconfig import get_path

import pytest
from test_docs import ROOT, fences

import attzoo
from attzoo import registry

PAGE = ROOT / "docs" / "adding-a-block.md"
USE = """
import sys
import attzoo
from attzoo import cli

block = attzoo.create("diagonal", 8, backend="torch", variant="paper")
assert block.spec.bias is False
assert sys.modules["acme_attention"].__file__.startswith(sys.argv[1]), "expected the editable project"
for arguments in (["info", "diagonal"], ["list"]):
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert not end.code, end.code
"""


def write_files(folder):
    """Write the files of the page to a folder."""
    for _, _, file, text in fences(PAGE):
        if file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)


def run(*command, cwd, **env):
    """Run a command that must succeed; return its standard output."""
    process = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_package_can_be_installed_into_a_new_environment(tmp_path):
    write_files(project := tmp_path / "project")
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    (Path(site_packages.strip()) / "base.pth").write_text(get_path("purelib"))   # makes attzoo importable
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    run(*pip, "--no-index", "--no-build-isolation", "-e", ".", cwd=project)
    out = run(python, "-c", USE, project, cwd=tmp_path, PYTHONPATH=str(ROOT), COLUMNS="120")
    assert "SE-Var2, diagonal channel attention" in out
    assert "section 3.2: no bias" in out
    assert "cannot be loaded" not in out


VARIANTS = {
    "as on the page": None,
    "no variants": "VARIANTS = {}",
    "with a rule": (
        "def odd(spec):\n    '''Whether channels are odd.'''\n    return spec.channels % 2 == 1\n\n\n"
        "VARIANTS = {'rule': Variant('somebody', {}, {'bias': odd})}"
    ),
    "only defaults": "VARIANTS = {'plain': Variant('somebody')}",
}


@pytest.mark.parametrize("variants", VARIANTS)
def test_card_is_correct_with_any_variants(variants, tmp_path, monkeypatch):
    write_files(tmp_path)
    folder = tmp_path / "acme_attention" / "diagonal"
    if text := VARIANTS[variants]:
        (folder / "variants.py").write_text(f"from attzoo.contract import Variant\n\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = registry.table() | {"diagonal": "acme_attention.diagonal:Diagonal"}
    monkeypatch.setattr(registry, "table", lambda: table)
    try:
        card = attzoo.info("diagonal")
        for text in (card.plain(), card.markdown()):
            assert "SE-Var2" in text
            assert ("somebody" in text) == ("somebody" in (VARIANTS[variants] or ""))
        with pytest.raises(TypeError, match="Diagonal takes no argument 'bais'; did you mean 'bias'"):
            attzoo.create("diagonal", 8, backend="numpy", bais=True)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "acme_attention"]:
            del sys.modules[name]
