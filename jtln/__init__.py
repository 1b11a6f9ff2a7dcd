"""Joint transfer learning with an optimal-transport loss (arXiv 1709.02995)."""

__version__ = "0.1.0"
