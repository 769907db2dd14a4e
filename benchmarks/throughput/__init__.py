"""Training throughput of DIN here and in other packages."""
