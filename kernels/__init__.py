"""Numerical kernels; imports nothing but torch (and triton, where a kernel has a Triton path)."""
