"""Tests of --each: every row of every parametrize mark is selected, with as few combinations as possible."""

from itertools import product
from types import SimpleNamespace

import pytest
from each import first_of_each_test, one_of_each, third_of_each_test


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


def test_first_item_of_each_test_is_selected():
    first, second = [*items("first", a=[1, 2, 3])], [*items("second", a=[4, 5])]
    assert {item.nodeid for item in first_of_each_test([*first, *second])} == {first[0].nodeid, second[0].nodeid}


def test_a_third_of_each_test_is_selected_and_tests_begin_at_different_items():
    numbers = list(range(9))
    selections = {}
    for test in ("first", "second", "third", "fourth", "fifth", "sixth"):
        selected = third_of_each_test([*items(test, a=numbers)])
        selections[test] = tuple(item.params["a"] for item in selected)
        assert selections[test] in ((0, 3, 6), (1, 4, 7), (2, 5, 8))
    assert len(set(selections.values())) > 1
    assert len(third_of_each_test([*items("test", a=[1])])) == 1


def test_parameters_of_a_fixture_are_all_selected():
    fixture_items = [*items("test", a=[1, 2])]
    for item in fixture_items:
        item.iter_markers = lambda name: []
    assert one_of_each(fixture_items) == fixture_items
