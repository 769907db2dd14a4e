"""From a user's tables to batches. Four rooms, in the order in which data goes through them:

``city`` simulates raw tables, ``raw`` reads and checks anybody's, ``preparation`` makes samples, vocabularies and the
catalog's columns of them (the ``prepare`` step), ``batches`` reads those for training. What all of them use lies
beside the rooms: whole folders and manifests, what killed processes leave, plain values (JSON, settings) and their
checks, array helpers, and packages that may be missing. May import kernels, nothing else of ours.
"""

LABEL = "label"
"""The column of clicks or visits: what histories are made of, and what a ranker learns unless it is told otherwise."""
OWN = "own."
"""What the names of further columns begin with: a team's own, of requests or, as lists, of candidates; int32 or
float32. The manifest says what they are."""
