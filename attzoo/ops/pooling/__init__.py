"""Means, maxima and weighted sums over positions or channels, and shapes that broadcast them back."""
