"""What classes are called, and what WordNet knows of them."""

from jtln.names.class_set import ClassSet

__all__ = ["ClassSet"]
