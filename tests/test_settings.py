"""The setting that chooses what computes a block: from when on, until when, and what it may be."""

import re

import pytest
import torch
from test_imports import python

import attzoo
from attzoo import settings
from attzoo.ops import fused

pytestmark = pytest.mark.usefixtures("as_it_was")


def test_the_setting_holds_until_it_is_changed():
    try:
        attzoo.kernels("eager")
        assert settings.chosen == "eager"
        attzoo.kernels("triton")
        assert settings.chosen == "triton"
    finally:
        attzoo.kernels("auto")


def test_the_setting_is_put_back_after_a_block_of_code():
    with attzoo.kernels("triton"):
        with attzoo.kernels("eager"):
            assert settings.chosen == "eager"
        assert settings.chosen == "triton"
        with pytest.raises(KeyError), attzoo.kernels("auto"):
            raise KeyError
        assert settings.chosen == "triton"
    assert settings.chosen == "auto"


def test_it_tells_what_was_chosen():
    assert repr(attzoo.kernels("auto")) == "kernels('auto')"


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="kernels must be one of 'auto', 'eager', 'triton', got 'fast'"):
        attzoo.kernels("fast")
    assert settings.chosen == "auto"


def test_the_environment_chooses_at_start():
    program = "import attzoo.settings; print(attzoo.settings.chosen)"
    for value, wanted in (("triton", "triton"), ("", "auto")):
        assert python(program, ATTZOO_KERNELS=value).stdout.strip() == wanted
    done = python(program, ATTZOO_KERNELS="fast")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "ValueError: ATTZOO_KERNELS must be one of 'auto', 'eager', 'triton', got 'fast'"
    )


def test_a_setting_may_be_entered_again():
    it = attzoo.kernels("eager")
    for _ in range(2):
        with it:
            assert settings.chosen == "eager"
        assert settings.chosen == "auto"


def test_a_torch_older_than_the_kernels_is_named(monkeypatch):
    block, x = attzoo.create("se", 8, backend="torch"), torch.ones(2, 8, 3, 3)
    for name, value in (("ABSENT", False), ("EARLY", False), ("EARLY_TORCH", True)):
        monkeypatch.setattr(fused, name, value)
    says = f"its kernels take PyTorch 2.11 or later, got {torch.__version__}; "
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=re.escape(says)):
        block(x)
    assert torch.equal(block(x), x * block.attention(x))
