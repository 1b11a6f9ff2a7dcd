"""The embedded part of Fashion-MNIST: `fashion.npz` (made by `make.py`), `classes.csv`, and its LICENSE."""
