import pytest
import torch

from jtln.data.transforms import Augment, ToFloat, move


def numbered(count: int = 4) -> torch.Tensor:
    """(count, 3, 5, 6) uint8 in which every pixel of an image differs from the others."""
    return torch.arange(count * 90).reshape(count, 3, 5, 6).remainder(251).to(torch.uint8)


def test_to_float_by_hand() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    out = ToFloat(mean=(0.0, 0.2, 0.5), std=(1.0, 0.1, 0.25))(images)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == pytest.approx([0, 0, 2])


def test_grey_is_repeated() -> None:
    out = ToFloat(mean=(0, 0, 0), std=(1, 1, 1))(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
    assert torch.equal(out, torch.ones(2, 3, 4, 4))


def test_to_float_adds_nothing_to_a_checkpoint() -> None:
    assert not ToFloat().state_dict()


def test_move_is_a_roll_with_the_border_repeated() -> None:
    images = numbered()
    down, right = torch.tensor([0, 2, -1, 0]), torch.tensor([0, 0, 3, -2])
    out = move(images, down, right)
    assert torch.equal(out[0], images[0])
    assert torch.equal(out[1, :, 2:], images[1].roll(2, dims=1)[:, 2:])
    assert torch.equal(out[1, :, :2], images[1, :, :1].expand(3, 2, 6))
    assert torch.equal(out[2, :, :4, 3:], images[2].roll((-1, 3), dims=(1, 2))[:, :4, 3:])
    assert torch.equal(out[2, :, 4, 3:], images[2, :, 4, :3])
    assert torch.equal(out[2, :, :4, :3], images[2, :, 1:, :1].expand(3, 4, 3))
    assert torch.equal(out[3, :, :, :4], images[3].roll(-2, dims=2)[:, :, :4])
    assert torch.equal(out[3, :, :, 4:], images[3, :, :, 5:].expand(3, 5, 2))


def test_mirrored_images_are_moved_first() -> None:
    images = numbered()
    zero, one = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    mirrored = torch.tensor([True, False, True, False])
    out = move(images, zero, zero, mirrored)
    assert torch.equal(out[mirrored], images[mirrored].flip(3))
    assert torch.equal(out[~mirrored], images[~mirrored])
    assert torch.equal(move(images, zero, one, ~(mirrored & False)), move(images, zero, one).flip(3))


def test_each_image_draws_its_own() -> None:
    image = numbered(1)
    torch.manual_seed(0)
    out = Augment(flip=True, shift=2)(image.expand(2000, -1, -1, -1))
    assert out.dtype == torch.uint8
    candidates = {
        move(image, torch.tensor([dy]), torch.tensor([dx]), torch.tensor([flip])).numpy().tobytes()
        for dy in range(-2, 3)
        for dx in range(-2, 3)
        for flip in (False, True)
    }
    assert len(candidates) == 50
    assert {moved.numpy().tobytes() for moved in out} == candidates


def test_nothing_asked_nothing_done() -> None:
    images = numbered()
    assert torch.equal(Augment(flip=False, shift=0)(images), images)


def test_the_seed_decides() -> None:
    torch.manual_seed(3)
    first = Augment()(numbered())
    torch.manual_seed(3)
    assert torch.equal(Augment()(numbered()), first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    images = numbered().cuda()
    assert ToFloat()(Augment()(images)).device == images.device
    down = torch.tensor([0, 2, -1, 0])
    assert torch.equal(move(images, down.cuda(), down.cuda()).cpu(), move(numbered(), down, down))
