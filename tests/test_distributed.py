"""In one process; what two do together is in tests/methods/test_ddp.py."""

import pytest
import torch

from jtln.distributed import all_gather, all_reduce_sum, class_sums, gather_in_order, process
from jtln.errors import UserError


def test_one_process_has_everything() -> None:
    rows = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    assert process() == (0, 1)
    assert torch.equal(all_reduce_sum(rows.detach().clone()), rows)
    (own,) = all_gather(rows)
    assert torch.equal(own, rows)
    assert not own.requires_grad
    assert torch.equal(gather_in_order(rows), rows)


def test_class_sums_by_hand() -> None:
    batches = [(torch.tensor([[1.0], [2.0]]), torch.tensor([2, 0])), (torch.tensor([[5.0]]), torch.tensor([2]))]
    sums, counts = class_sums(batches, 3)
    assert sums[:, 0].tolist() == [2, 0, 6]
    assert counts.tolist() == [1, 0, 2]
    with pytest.raises(UserError, match=r"features.*none"):
        class_sums([], 3)
