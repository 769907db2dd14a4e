"""The ``prepare`` step: raw tables become samples split by time, vocabularies, and the columns of the catalog.

Buckets of users, histories, counts, negatives and vocabularies belong here. Imports ``raw``, and of ``batches`` the
names of features.
"""
