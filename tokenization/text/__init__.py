"""Items to vectors: prompts, districts for those without, encoders, and the store of embeddings on disk.

Anything about what the language model reads, or how vectors are kept and read, belongs here. Imports no other room.
"""
