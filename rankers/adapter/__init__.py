"""RecLLM-Adapter: a small causal language model that attends to where a user has been, lists places, and says why.

Of the system there is a mind map and no paper (docs/adapter.md). ``model.py`` is cross-attention, aggregator and heads
in a language model (``language.py``); ``facts.py`` what is true of a place and a history, as sentences;
``sentences.py`` decoding among these; ``checker.py`` whether a sentence is true, without any of that; ``advisor.py``
the folder that answers. May import what other rankers may, and what they share at the edge.
"""
