"""Exclude these packages from the collection of tests."""

collect_ignore = ["attzoo_scale", "attzoo_scse", "attzoo_simam", "attzoo_centered"]
