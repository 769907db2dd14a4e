"""placerank: ranking models for places, on TorchRec sharded tables."""

__version__ = "0.1.0"
