"""What encoders and tokenizers are judged by: coverage, measures of codes, reports of ``align`` and ``tokenize``.

A new measure, or a picture of one, belongs here. Imports ``codes`` and ``text``.
"""
