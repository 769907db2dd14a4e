"""Numerical kernels; imports nothing but torch (and triton, where a kernel has a Triton path).

A public function checks what it is given (``checks.py``) before a loop or a kernel reads memory. Where that means a
look at the numbers in offsets, rows or ids, ``NAME_unchecked`` beside it is the same without that look, for callers
whose numbers are right by construction, as those in rankers/ and embeddings/ are; shapes and types are checked in both.
"""
