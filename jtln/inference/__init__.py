"""A trained network, used and exported."""
