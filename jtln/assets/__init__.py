"""Data that travels with the package: embedded image sets and the WordNet noun table."""
