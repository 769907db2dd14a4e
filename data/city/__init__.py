"""The simulated city: real coordinates, invented places and people, click probabilities that are known (``simulate``).

Writes a raw folder like anybody's; imports only the helpers beside the rooms of ``data``.
"""
