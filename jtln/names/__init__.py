"""Names of classes, and their links to WordNet."""

from jtln.names.class_set import ClassSet

__all__ = ["ClassSet"]
