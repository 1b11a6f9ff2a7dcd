"""WordNet 3.0's nouns as a compact table: made by ``make.py``, read by ``jtln.names.wordnet``, see ``LICENSE``."""
