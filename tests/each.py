"""Select fewer combinations of the parameters of tests."""

from collections import Counter, defaultdict
from zlib import crc32


def selection(items, each, share):
    """Return the test items to run without --all, in their order.

    Args:
        items: collected items.
        each: whether --each has selected among them already.
        share: every how many combinations of a test to run. The marker one_of_each may ask for fewer.

    """
    selected = set()
    for group in tests(items):
        marker = None if group[0].get_closest_marker("gpu") else group[0].get_closest_marker("one_of_each")
        options = marker.kwargs if marker else {}
        if options.get("first"):
            group = group[:1]
        elif marker and not each:
            group = one_of_each(group)
        selected.update(item.nodeid for item in part(group, max(share, options.get("share", 1))))
    return [item for item in items if item.nodeid in selected]


def tests(items):
    """Return the items of each test."""
    groups = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("[")[0]].append(item)
    return list(groups.values())


def one_of_each(items):
    """Return the items with every row of every `parametrize` mark of each test at least once, in their order.

    Of each test, the items with the most new rows are selected, and of these the ones whose rows were used least.
    """
    selected = set()
    for group in tests(items):
        uses, remaining = Counter(), {item.nodeid: rows(item) for item in group}
        while remaining:
            best = max(remaining, key=lambda name: preference(remaining[name], uses))
            new = remaining.pop(best)
            if uses and not new - uses.keys():
                break
            selected.add(best)
            uses.update(new)
    return [item for item in items if item.nodeid in selected]


def part(group, share):
    """Return every `share`-th item of a test, at least one. The first one depends on the test's name.

    So tests with the same parameters, such as the names of all blocks, run with different ones.
    """
    name = group[0].nodeid.partition("[")[0].rpartition("::")[2]
    return group[crc32(name.encode()) % min(share, len(group)) :: share]


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
