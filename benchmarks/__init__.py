"""How fast attzoo's blocks are beside the blocks that people use today, measured so that others can repeat it."""
