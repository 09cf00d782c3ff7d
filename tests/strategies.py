"""Hypothesis strategies: cases of blocks, arguments of U-Nets, and cases for kernels."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st

import attzoo
from attzoo.testing.case import EPS, draw

NAMES = attzoo.names()
LEVEL_CHANNELS = (2, 3, 4)   # of the U-Nets below
THOROUGH = 50   # examples of a property with --thorough


def accepts_all(card, counts):
    """Whether the block's default arguments accept each of these numbers of channels."""
    return all(card.at_least(count) == count for count in counts)


# those with one input
SINGLE = [
    name for name in NAMES if len(attzoo.info(name).inputs) == 1 and accepts_all(attzoo.info(name), LEVEL_CHANNELS)
]
GATES = [name for name in NAMES if len(attzoo.info(name).inputs) == 2]


def cheap_examples():
    """Return the number of examples for a test whose examples take at most 20 ms: 80 times as many with --thorough."""
    count = settings.default.max_examples
    return 80 * count if count == THOROUGH else count


def cheap(test):
    """Draw `cheap_examples()` in a property-based test."""
    return settings(max_examples=cheap_examples())(test)


@st.composite
def cases(draw_from, name, dtypes=tuple(EPS), small=False):
    """Draw a case of a block. Shrinks towards the default options, and the first shapes and dtype."""

    def pick(values):
        return draw_from(st.sampled_from(values))

    return draw(name, pick, dtype=pick(dtypes), small=small)


@st.composite
def unets(draw_from):
    """Draw valid arguments of a U-Net and the shape of an image."""

    def pick(*values):
        return draw_from(st.sampled_from(values))

    dims, steps = pick(2, 1, 3), pick(1, 2)
    skip = pick(*GATES, None, *SINGLE, *GATES)
    grid = skip in GATES and pick(False, True)
    options = {"stride": pick(1, 2), "output_transform": pick(False, True)} if grid else {}
    argument_names = {argument.name for argument in attzoo.info(skip).arguments} if skip else {}
    up = pick("nearest", "linear", "transpose")
    arguments = {
        "in_channels": pick(1, 2),
        "out_channels": pick(1, 3),
        "channels": tuple(pick(*LEVEL_CHANNELS) for _ in range(steps + 1)),
        "strides": tuple(tuple(pick(2, 1, 3) for _ in range(dims)) for _ in range(steps)),
        "kernel_size": pick(3, 1, 5),
        "norm": pick("batch", None, "instance"),
        "down": pick("max_pool", "conv"),
        "up": up,
        "up_kernel_size": pick(None, 3, 4, 5) if up == "transpose" else None,
        "up_conv": pick(True, False),
        "skip": skip,
        "skip_options": {name: value for name, value in options.items() if name in argument_names},
        "gated": pick(None, 1) if skip else None,
        "gating": "grid" if grid else "up",
        "combine": bool(skip) and pick(False, True),
        "concat": pick("skip_first", "up_first"),
        "decoder": pick("double", "merge"),
        "block": pick(None, *SINGLE),
        "deep_supervision": pick(False, True),
        "head": pick("linear", "sigmoid"),
        "spatial_dims": dims,
    }
    if up == "transpose" and arguments["up_kernel_size"] is None and not arguments["up_conv"]:
        arguments["up_kernel_size"] = 3   # the default, 2, is smaller than a stride of 3
    shape = pick(1, 2), arguments["in_channels"], *(pick(4, 1, 2, 3, 5, 7) for _ in range(dims))
    return arguments, shape


def with_fewer_taps(case):
    """Return a case whose 3-D kernels have at most 5 x 5 x 5 taps: each tap is slow in the interpreter."""
    is_slow = len(case.shapes[0]) == 5 and case.options.get("kernel_size") == 7
    return replace(case, options=dict(case.options) | {"kernel_size": 5}) if is_slow else case


@st.composite
def kernel_cases(draw_from, name):
    """Draw a larger case of a block for its kernels, a layout, a kind of values, and whether tiles are tiny."""

    def pick(*values):
        return draw_from(st.sampled_from(values))

    case, tiny = draw_from(cases(name, ("float32", "float16", "bfloat16"))), pick(False, True)
    _, channels, *sizes = case.shapes[0]
    largest = {1: 60, 2: 8, 3: 4} if tiny else {1: 300, 2: 17, 3: 6}   # each tile is slow in the interpreter
    sizes = tuple(draw_from(st.integers(1, largest[len(sizes)])) for _ in sizes)
    case = replace(with_fewer_taps(case), shapes=((pick(2, 1, 3), channels, *sizes),))
    equal_kind = ["equal"] if channels > 2 else []   # with fewer channels no value would vary
    return case, pick("channels first", "channels last"), pick("normal", "ties", *equal_kind), tiny
