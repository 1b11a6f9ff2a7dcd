"""Pairs of labelled image sets, and the batches that training and evaluation read from them."""
