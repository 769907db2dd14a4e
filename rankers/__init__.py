"""Interest towers and the ranker that wires them."""
