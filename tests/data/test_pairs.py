import pytest
from tiny import TinySpec

from jtln.data.pairs import check_classes
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

AB, CD = ClassSet(["a", "b"]), ClassSet(["c", "d"])


def test_a_pair_of_your_own_needs_few_attributes() -> None:
    spec = TinySpec()
    assert (spec.rate, spec.crop, spec.dropped) == (None, None, ())
    assert spec.stored_size == spec.image_size
    assert spec.load().skipped == ()
    spec.stored_size = 10
    assert (spec.stored_size, spec.image_size) == (10, 8)


def test_classes_are_two_or_more_and_different_ones() -> None:
    check_classes(AB, CD)
    check_classes(AB, AB, disjoint=False)
    with pytest.raises(UserError, match=r": b\b.*target_classes"):
        check_classes(AB, ClassSet(["b", "c"]))
    with pytest.raises(UserError, match=r"'c'.*source_classes"):
        check_classes(ClassSet(["c"]), AB)
