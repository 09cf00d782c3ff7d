"""The attention gate's own kernels. Importing a module of this folder imports Triton."""
