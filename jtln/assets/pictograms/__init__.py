"""The embedded pictograms: `CATEGORY/STYLE.png` (64 x 64), `classes.csv`, and the artists' NOTICE."""
