"""What people bring: the schema's columns, readers of public formats and CSV, and the checks that every row passes.

A format or a rule about bad rows belongs here. Knows nothing of samples, vocabularies or models; imports only the
helpers beside the rooms of ``data``.
"""
