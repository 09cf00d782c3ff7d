"""One folder per block, furnished alike: __init__ is its card, spec its meaning, variants its published presets,
torch and keras its bodies.
"""
