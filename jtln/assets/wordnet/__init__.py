"""WordNet 3.0's nouns as a compact table: made by ``make.py``, read by ``jtln.wordnet``, licensed by ``LICENSE``."""
