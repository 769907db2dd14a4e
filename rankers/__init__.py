"""The ranker: ``ranker.py`` wires embeddings, plug-ins, one tower and an MLP; ``exported.py`` scores without training.

``towers`` holds what turns a target and a history into a vector, ``plugins`` what works with every tower. May import
kernels, data and embeddings.
"""
