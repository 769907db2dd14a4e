"""RecLLM-Adapter: a small causal language model that attends to where a user has been, lists places, and says why.

Of the system there is a mind map and no paper (docs/adapter.md). ``config.py`` settings; ``language.py`` the language
model and its tokenizer; ``model.py`` cross-attention, aggregator and heads; ``inputs.py`` what it is asked;
``queries.py`` questions; ``facts.py`` what is true of a place and a history, as sentences; ``sentences.py`` decoding
among these; ``checker.py`` whether a sentence is true, without any of that; ``losses.py``; ``advisor.py`` the folder that
answers. May import what other rankers may, and ``generative/reach.py``.
"""
