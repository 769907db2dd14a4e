"""From a prepared folder to batches on a device: the description of features, the loader and the catalog.

What a ranker can know of a sample, an item or a user belongs here. Does not know how the folder was made; imports
kernels and the helpers beside the rooms of ``data``.
"""
