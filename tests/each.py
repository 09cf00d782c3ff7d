"""Select fewer combinations of the parameters of a test, with every row of every `parametrize` mark at least once."""

from collections import Counter, defaultdict
from zlib import crc32


def one_of_each(items):
    """Return the selected test items in their order.

    Of each test, the items with the most new rows are selected, and of these the ones whose rows were used least.
    """
    tests, selected = defaultdict(list), set()
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for group in tests.values():
        uses, remaining = Counter(), {item.nodeid: rows(item) for item in group}
        while remaining:
            best = max(remaining, key=lambda name: preference(remaining[name], uses))
            new = remaining.pop(best)
            if uses and not new - uses.keys():
                break
            selected.add(best)
            uses.update(new)
    return [item for item in items if item.nodeid in selected]


def first_of_each_test(items):
    """Return the first item of each test."""
    return list({item.nodeid.partition("[")[0]: item for item in reversed(items)}.values())


def third_of_each_test(items):
    """Return every third item of each test, at least one. The first one depends on the test's name.

    So tests with the same parameters, such as the names of all blocks, run with different ones.
    """
    tests, selected = defaultdict(list), set()
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item.nodeid)
    for name, group in tests.items():
        selected.update(group[crc32(name.rpartition("::")[2].encode()) % min(3, len(group)) :: 3])
    return [item for item in items if item.nodeid in selected]


def preference(item_rows, uses):
    """Return a key that is larger for the item to select first: its number of new rows, then how rarely it repeats."""
    return len(item_rows - uses.keys()), -sum(uses[row] for row in item_rows)


def rows(item):
    """Return the rows that an item takes from each `parametrize` mark and from each fixture with parameters."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    marks = [mark.args[0] for mark in item.iter_markers("parametrize")]
    marked = [[name.strip() for name in names.split(",")] if isinstance(names, str) else names for names in marks]
    fixtures = [[name] for name in params if not any(name in names for names in marked)]
    return {tuple((name, id(params[name])) for name in names) for names in (*marked, *fixtures)}
