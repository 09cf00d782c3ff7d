"""Code that fused kernels share. Importing a module of this folder imports Triton."""
