"""Reordering, grouping and repeating channels."""
