"""What placerank measures: one script a question, figures in ``results/``."""
