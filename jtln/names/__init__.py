"""What classes are called, and what WordNet knows of them."""
