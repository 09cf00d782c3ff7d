"""Linear maps of the channels and convolutions."""
