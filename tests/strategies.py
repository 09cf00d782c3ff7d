"""Every hypothesis strategy of the suite."""

from hypothesis import strategies as st

import attzoo
from attzoo.testing.case import EPS, draw

NAMES = attzoo.names()


@st.composite
def cases(draw_from, name, dtypes=tuple(EPS), small=False):
    """A case of block `name`; shrinks towards the plainest options, shapes and dtype."""

    def pick(values):
        return draw_from(st.sampled_from(values))

    return draw(name, pick, dtype=pick(dtypes), small=small)
