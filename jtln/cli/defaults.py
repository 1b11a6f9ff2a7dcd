"""Defaults that follow from a choice on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from jtln.cli.overrides import key_of

CLASSIFIER = "dataset/source=classifier"
# A published classifier as the source task: no source image is read, and the prior carries what it knows.
OF_CLASSIFIER = (
    "pretrain=none",
    "cost=wordnet",
    "cost.metric=path",
    "head=linear",
    "head.prior=0.5",
    "++method.lambda_source=0.0",
    "++method.ot_images=target",
)


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the defaults of ``dataset/source=classifier`` in front, where they have that.

    A method is composed after the dataset, so that the dataset's file cannot set these. What the arguments set
    themselves stays as it is, and so does the head of a method that forms one.
    """
    if not any(argument.lstrip("+") == CLASSIFIER for argument in arguments):
        return list(arguments)
    given = {key_of(argument): argument.partition("=")[2] for argument in arguments if "=" in argument}
    added = [default for default in OF_CLASSIFIER if key_of(default) not in given]
    if given.get("method", "jtln_annealed") != "jtln_annealed":
        added = [default for default in added if default != "head=linear"]
    cost = given.get("cost", "wordnet")
    if cost != "wordnet":
        added = [default for default in added if not default.startswith("cost.")]
    if cost == "permuted" and given.get("cost@cost.of", "wordnet") == "wordnet" and "cost.of.metric" not in given:
        added.append("cost.of.metric=path")
    return [*added, *arguments]
