"""Operations shared by all blocks, one module per framework. The NumPy module is the reference for the other two."""
