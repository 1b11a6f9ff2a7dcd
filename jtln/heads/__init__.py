"""How the target classifier is formed."""
