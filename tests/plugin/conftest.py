"""Exclude these packages from the collection of tests."""

collect_ignore = ["attzoo_scale", "attzoo_combined", "attzoo_centered"]
