"""Batch, layer, group and instance norm, and operations that divide by a norm or by the variance."""
