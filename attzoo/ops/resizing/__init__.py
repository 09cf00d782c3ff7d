"""Changing the number of positions: cropping, padding, resampling."""
