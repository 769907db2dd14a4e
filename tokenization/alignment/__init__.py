"""Teaching a language model geography and behaviour: reward model, preference pairs, G-DPO, adapters, their training.

A new loss or kind of pair belongs here. Imports ``text``.
"""
