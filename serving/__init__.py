"""An export behind HTTP: requests together to the ranker, and new exports without dropping one. Imports rankers."""
