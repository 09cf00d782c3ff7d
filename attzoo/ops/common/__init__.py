"""Helpers of the other operations: checks of inputs, dtypes, data formats."""
