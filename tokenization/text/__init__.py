"""Items to vectors: prompts, districts for those without, encoders, what they can read, and vectors on disk.

Anything about what the language model reads, or how vectors are kept and read, belongs here. Imports no other room.
"""
