"""Microbenchmarks of the kernels: ``placerank bench kernels``."""
