"""``import placerank as pr``: the steps as functions, and what they wrote as objects that a notebook shows."""
