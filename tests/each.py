"""Fewer combinations of the parameters of a test: each row of each of its `parametrize` marks comes at least once."""

from collections import defaultdict


def one_of_each(items):
    """The items that are enough for that, in their order; of every test in turn those with most that is new."""
    tests, chosen = defaultdict(list), set()
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for group in tests.values():
        seen, left = set(), {item.nodeid: rows(item) for item in group}
        while left:
            best = max(left, key=lambda name: len(left[name] - seen))
            new = left.pop(best) - seen
            if not new and seen:
                break
            chosen.add(best)
            seen |= new
    return [item for item in items if item.nodeid in chosen]


def rows(item):
    """What an item takes from each `parametrize` mark, and from each fixture that has parameters."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    marks = [mark.args[0] for mark in item.iter_markers("parametrize")]
    marked = [[name.strip() for name in names.split(",")] if isinstance(names, str) else names for names in marks]
    fixtures = [[name] for name in params if not any(name in names for names in marked)]
    return {tuple((name, id(params[name])) for name in names) for names in (*marked, *fixtures)}
