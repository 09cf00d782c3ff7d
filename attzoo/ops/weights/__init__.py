"""Finding the weights of a block by name, and initialising them."""
