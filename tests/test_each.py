"""Tests of the selection of combinations of parameters: of --each, --share and the marker one_of_each."""

from itertools import product
from types import SimpleNamespace

import pytest
from each import one_of_each, part, selection


def items(test, **values):
    """Yield the items of a test with a parametrize mark for each keyword; "_and_" separates a mark's names."""
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
def test_each_row_of_each_mark_is_selected_without_surplus_items(values):
    selected = one_of_each([*items("first", **values), *items("second", **values)])
    assert len(selected) == 2 * max(map(len, values.values()), default=1)
    for argument, rows in values.items():
        names = argument.split("_and_")
        selected_rows = {tuple(item.params[name] for name in names) for item in selected}
        assert selected_rows == {row if len(names) > 1 else (row,) for row in rows}


def test_rows_that_are_repeated_are_used_equally_often():
    selected = one_of_each([*items("test", a=[1, 2, 3, 4, 5, 6], b=["x", "y"])])
    assert [item.params["b"] for item in selected].count("x") == 3


def marked(test, markers, **values):
    """Return the items of a test with markers, which are names and keyword arguments."""
    group = [*items(test, **values)]
    for item in group:
        item.get_closest_marker = lambda name: SimpleNamespace(kwargs=markers[name]) if name in markers else None
    return group


@pytest.mark.parametrize(("markers", "each", "share", "expected"), [
    ({}, False, 1, 12), ({}, False, 5, 2), ({"one_of_each": {}}, False, 1, 6), ({"one_of_each": {}}, True, 1, 12),
    ({"one_of_each": {"share": 3}}, False, 1, 2), ({"one_of_each": {"share": 3}}, False, 2, 2),
    ({"one_of_each": {"first": True}}, False, 1, 1), ({"one_of_each": {"share": 3}, "gpu": {}}, False, 1, 12),
])   # fmt: skip
def test_selection_follows_the_marker_and_the_options(markers, each, share, expected):
    group = marked("test", markers, a=[1, 2, 3, 4, 5, 6], b=["x", "y"])
    selected = selection([*group, *marked("another", {}, a=[1])], each, share)
    assert len(selected) in (expected + 1, expected + 2 if 12 % share else 0)
    assert selected[-1].nodeid.startswith("another")


def test_a_share_of_each_test_is_selected_and_tests_begin_at_different_items():
    numbers = list(range(9))
    selections = {}
    for test in ("first", "second", "third", "fourth", "fifth", "sixth"):
        selections[test] = tuple(item.params["a"] for item in part([*items(test, a=numbers)], 3))
        assert selections[test] in ((0, 3, 6), (1, 4, 7), (2, 5, 8))
    assert len(set(selections.values())) > 1
    assert len(part([*items("test", a=[1])], 3)) == 1


def test_parameters_of_a_fixture_are_all_selected():
    fixture_items = [*items("test", a=[1, 2])]
    for item in fixture_items:
        item.iter_markers = lambda name: []
    assert one_of_each(fixture_items) == fixture_items
