"""Items to text, to vectors of a language model, to semantic IDs (LGSID, arXiv 2511.14221).

Two steps, ``align.py`` and ``tokenize.py``, put together what four rooms hold: ``text`` (items to vectors),
``codes`` (vectors to semantic IDs), ``alignment`` (teaching the language model where places are) and ``judging`` (what
vectors and codes are worth, and the steps' reports). May import kernels, data and reports.
"""
