"""The command line: Hydra in, objects out. Nothing else in this package knows Hydra."""
