"""Ranks, sharding plan, the loop, checkpoints, and export of a run; validation's metrics and predictions too.

May import everything but evaluation, tokenization and the command.
"""
