"""Defaults that follow from a choice on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from jtln.cli.overrides import key_of

CLASSIFIER, PHOTOGRAPHS = "dataset/source=classifier", "experiment=photographs"
WITHOUT_IMAGES = ("++method.lambda_source=0.0", "++method.ot_images=target")  # of a method: no source image is read
# A published classifier as the source task: no source image is read, and the prior carries what it knows.
OF_CLASSIFIER = (
    "pretrain=none",
    "cost=wordnet",
    "cost.metric=path",
    "head=linear",
    "head.prior=0.5",
    *WITHOUT_IMAGES,
)
# Keys that only the experiment's own cost and head have: its file would set them for any that takes their place.
OF_PHOTOGRAPHS = ("cost.metric=path", "head.power=0.5")


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with defaults in front: of ``dataset/source=classifier`` or ``experiment=photographs``.

    A method is composed after the dataset, so that the dataset's file cannot set these. What the arguments set
    themselves stays as it is, and so does the head of a method that forms one.
    """
    chosen = {argument.lstrip("+") for argument in arguments} & {CLASSIFIER, PHOTOGRAPHS}
    if not chosen:
        return list(arguments)
    given = {key_of(argument): argument.partition("=")[2] for argument in arguments if "=" in argument}
    defaults = OF_CLASSIFIER
    if PHOTOGRAPHS in chosen:
        defaults = (*OF_PHOTOGRAPHS, *(WITHOUT_IMAGES if "method" in given else ()))
    added = [default for default in defaults if key_of(default) not in given]
    if given.get("head", "logistic") != "logistic":
        added = [default for default in added if default != "head.power=0.5"]
    if given.get("method", "jtln_annealed") != "jtln_annealed":
        added = [default for default in added if default != "head=linear"]
    cost = given.get("cost", "wordnet")
    if cost != "wordnet":
        added = [default for default in added if not default.startswith("cost.")]
    if cost == "permuted" and given.get("cost@cost.of", "wordnet") == "wordnet" and "cost.of.metric" not in given:
        added.append("cost.of.metric=path")
    return [*added, *arguments]
