"""With --each, every parameter of a test comes, and no more combinations than that takes."""

from itertools import product
from types import SimpleNamespace

import pytest
from each import one_of_each


def items(test, **values):
    """What pytest collects for a test with a mark for each keyword, whose names are separated by `_and_`."""
    marks = [SimpleNamespace(args=(name.replace("_and_", ", "), rows)) for name, rows in values.items()]
    for rows in product(*values.values()):
        params = {}
        for name, row in zip(values, rows, strict=True):
            names = name.split("_and_")
            params |= dict(zip(names, row if len(names) > 1 else [row], strict=True))
        call = {"callspec": SimpleNamespace(params=params)} if values else {}
        yield SimpleNamespace(nodeid=f"{test}[{rows}]", params=params, iter_markers=lambda name: marks, **call)


@pytest.mark.parametrize("values", [
    {}, {"a": [1, 2, 3]}, {"a": [1, 2, 3], "b": ["x", "y"]}, {"a": [1, 2], "b": ["x", "y", "z"], "c": [None, True]},
    {"a_and_b": [(1, 2), (1, 3), (4, 2)], "c": ["x", "y"]},
])   # fmt: skip
def test_each_row_of_each_mark_comes_and_no_more(values):
    found = one_of_each([*items("test", **values), *items("other", **values)])
    assert len(found) == 2 * max(map(len, values.values()), default=1)
    for name, rows in values.items():
        names = name.split("_and_")
        came = {tuple(item.params[each] for each in names) for item in found}
        assert came == {row if len(names) > 1 else (row,) for row in rows}


def test_the_parameters_of_a_fixture_are_parameters():
    found = [*items("test", a=[1, 2])]
    for item in found:
        item.iter_markers = lambda name: []
    assert one_of_each(found) == found
