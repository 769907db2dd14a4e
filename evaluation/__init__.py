"""The ``evaluate`` step: slices, baselines that need no model, the oracle, and the report with its pictures and maps.

What a trained ranker is compared with or broken down by belongs here; the metrics themselves are
``training/metrics.py``, since validation uses them too. May import everything but the command.
"""
