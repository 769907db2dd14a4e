"""Generative rankers: semantic IDs decoded over the items that exist and can be reached.

index.py    items sorted by their codes; any set of them as a prefix tree; items come and go
reach.py    which items a request may be shown: near, open, any mask
layers.py   transformer blocks that decode a sequence, and the same over a tree
tiger.py    TIGER as published
decoding.py exact log p of every allowed item, and beams
experts.py  a sparse mixture of experts for a block's feed-forward
model.py    the default model
onerec.py   OneRec: the default model with experts, and lists for a session
preference.py  alignment with a reward model: DPO, gradient-bounded policy optimisation
"""
