"""Exclude this project from the collection of tests."""

collect_ignore = ["attzoo_scale"]
