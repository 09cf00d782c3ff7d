"""Select fewer combinations of the parameters of a test, with every row of every `parametrize` mark at least once."""

from collections import defaultdict


def one_of_each(items):
    """Return the selected test items in their order. Of each test, the items with the most new rows are selected."""
    tests, selected = defaultdict(list), set()
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for group in tests.values():
        covered, remaining = set(), {item.nodeid: rows(item) for item in group}
        while remaining:
            best = max(remaining, key=lambda name: len(remaining[name] - covered))
            new = remaining.pop(best) - covered
            if not new and covered:
                break
            selected.add(best)
            covered |= new
    return [item for item in items if item.nodeid in selected]


def rows(item):
    """Return the rows that an item takes from each `parametrize` mark and from each fixture with parameters."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    marks = [mark.args[0] for mark in item.iter_markers("parametrize")]
    marked = [[name.strip() for name in names.split(",")] if isinstance(names, str) else names for names in marks]
    fixtures = [[name] for name in params if not any(name in names for names in marked)]
    return {tuple((name, id(params[name])) for name in names) for names in (*marked, *fixtures)}
