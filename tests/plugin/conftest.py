"""A project of its own: pytest has nothing to collect here."""

collect_ignore = ["attzoo_scale"]
