"""The measurement of fine-tuning with attached blocks."""

from attzoo.demo.run import CHANNELS
from attzoo.demo.torch import create_seeded
from benchmarks import finetune


def test_all_rows_begin_with_the_same_network(monkeypatch):
    monkeypatch.setattr(finetune, "TESTED", (1,))
    trained = [create_seeded(0, CHANNELS)]
    plain, identity = finetune._row("", "", trained), finetune._row("eca", "identity", trained)
    assert plain.before == identity.before
    assert plain.parameters == 0
    assert identity.parameters == 2 * (3 + 1)   # a kernel and gamma in each stage
    assert plain.after["1"][0] > 2 * plain.before[0]


def test_recorded_rows_change_accuracy_only_with_default_start():
    rows = finetune.read()["rows"]
    plain = rows[0]["before"]
    assert {row["start"] for row in rows} == {"", "identity", "default"}
    for row in rows:
        assert (row["before"] == plain) == (row["start"] != "default")
