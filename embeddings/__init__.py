"""Sharded embedding tables and what comes out of them."""
