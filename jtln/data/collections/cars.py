"""Stanford Cars (Krause et al. 2013)."""

from __future__ import annotations

from torchvision import datasets

from jtln.data.collections.base import Listed, Published


class Cars(Published):
    """196 models of cars in official training and test parts; arguments as in ``Published``.

    It cannot be fetched: its address is dead. torchvision reads a copy.
    """

    name = "cars"
    folder = "stanford_cars/devkit"
    layout = (
        "stanford_cars/ with cars_train/*.jpg, cars_test/*.jpg, cars_test_annos_withlabels.mat, "
        "devkit/cars_train_annos.mat and devkit/cars_meta.mat"
    )
    manual = (
        "It cannot be fetched, as its address is dead; copies, and the two .mat files that they may lack, are named in "
        "github.com/pytorch/vision/issues/7545"
    )

    def files(self) -> dict[str, Listed]:
        return {part: self.listed(datasets.StanfordCars, split=part) for part in ("train", "test")}
