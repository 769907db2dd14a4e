"""Item text to language-model embedding, geographic alignment, semantic IDs (LGSID, arXiv 2511.14221)."""
