"""Vectors to semantic IDs: tokenizers behind one interface, k-means, codebook training, collisions, the file of IDs.

A new tokenizer is a file here and a line in ``tokenizers.py``. Imports ``text`` for reading vectors.
"""
