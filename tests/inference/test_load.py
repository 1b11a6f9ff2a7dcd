"""A network from its checkpoint, compared with the one that was written; and code that a checkpoint names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import TinySpec
from torch import nn

from jtln.cli.export import main as export
from jtln.cli.predict import main as predict
from jtln.errors import UserError
from jtln.heads import Cosine, Discriminant, Head, Linear
from jtln.inference import Classifier, load
from jtln.inference.classifier import KEY, Description
from jtln.module import JTLN
from jtln.trunks import alexnet, from_module, from_torchvision

ALEXNET = {"_target_": "jtln.trunks.alexnet", "width": 0.05}
IMAGES = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

Write = Callable[..., Any]


def change(path: Path, **values: Any) -> None:
    """Set keys of a checkpoint anew."""
    torch.save(torch.load(path, weights_only=True) | values, path)


# What was written comes back.


def expected(written: Any, head: nn.Module, views: int = 1) -> torch.Tensor:
    """The mean of softmax(head(trunk(view))) over the middle of each image and its mirror image."""
    middle = IMAGES[:, :, 2:18, 2:18]
    shown = [(view.float() / 255 - 0.5) / 0.5 for view in (middle, middle.flip(-1))[:views]]
    with torch.no_grad():
        return torch.stack([head(written.trunk(view)).softmax(1) for view in shown]).mean(0)


@torch.no_grad()
def probabilities(classifier: Classifier) -> torch.Tensor:
    return classifier(IMAGES)


@pytest.mark.parametrize("head", ["source", "target"])
def test_a_run_and_its_checkpoint_are_the_network_that_was_written(write: Write, head: str) -> None:
    written = write()
    linear = getattr(written, f"{head}_head")
    for given in (written.path, str(written.path), written.path.parents[1], str(written.path.parents[1])):
        found = load(given, head)
        torch.testing.assert_close(probabilities(found), expected(written, linear))
        assert found.classes == {"source": ("apple", "pear", "plum"), "target": ("elk", "fox, red", "gnu", "yak")}[head]
        assert (found.reader.size, found.reader.fit, found.reader.channels) == (20, "pad", 3)
        assert not any(module.training for module in found.modules())


def test_probabilities_that_are_not_finite_are_refused(write: Write, tmp_path: Path) -> None:
    network = alexnet(16, "none", 0.05)
    for parameter in network.parameters():
        parameter.data.mul_(1e30)  # finite, but float32 overflows after two layers
    image = tmp_path / "photo.png"
    Image.new("RGB", (20, 20), (200, 90, 40)).save(image)
    with pytest.raises(UserError, match=r"finite probabilities of .*photo\.png.*learning rate"):
        list(load(write(network=network).path).predict([image]))


def test_views_are_those_of_the_test_or_those_that_are_given(write: Write) -> None:
    written = write(views="flip")
    mirrored, plain = expected(written, written.target_head, 2), expected(written, written.target_head)
    assert not torch.allclose(mirrored, plain, atol=1e-4)
    torch.testing.assert_close(probabilities(load(written.path)), mirrored)
    torch.testing.assert_close(probabilities(load(written.path, views="none")), plain)


@pytest.mark.parametrize("head", [Linear(), Cosine(), Discriminant(shrinkage=0.4)])
def test_the_fitted_head_takes_the_place_of_the_trained_one(write: Write, head: Head) -> None:
    dim = write().trunk.dim
    fitted = head.classifier(dim, 4)
    for value in fitted.state_dict().values():
        value.uniform_(0.1, 1)
    written = write(head=head, fitted=fitted)
    assert not torch.allclose(expected(written, fitted), expected(written, written.target_head), atol=1e-3)
    torch.testing.assert_close(probabilities(load(written.path)), expected(written, fitted))
    torch.testing.assert_close(probabilities(load(written.path, "source")), expected(written, written.source_head))


@pytest.mark.parametrize("head", [Linear(), Cosine(), Discriminant(shrinkage=0.4)])
def test_the_lightning_module_of_a_checkpoint(write: Write, head: Head) -> None:
    """Without a further argument, and with the head that the run ended with."""
    fitted = head.classifier(write().trunk.dim, 4)
    for value in fitted.state_dict().values():
        value.uniform_(0.1, 1)
    written = write(head=head, fitted=fitted) if head.replaces else write()
    module = JTLN.load_from_checkpoint(str(written.path)).eval()
    images = (IMAGES[:, :, 2:18, 2:18].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        source, target = module(images)
        features = written.trunk(images)
        torch.testing.assert_close(source, written.source_head(features))
        torch.testing.assert_close(target, (fitted if head.replaces else written.target_head)(features))
    assert module.trunk.frozen  # as in training
    assert [term.name for term in module.terms] == ["target_loss"]


def test_a_lightning_module_whose_trunk_is_not_this_packages(write: Write, tmp_path: Path) -> None:
    written = write(trunk={"_target_": "mine.trunk"})
    with pytest.raises(UserError, match=r"mine\.trunk: .*trunk="):
        JTLN.load_from_checkpoint(written.path)
    assert JTLN.load_from_checkpoint(written.path, trunk=alexnet(16, "none", 0.05)).target_head.out_features == 4
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt.*state_dict"):
        JTLN.load_from_checkpoint(tmp_path / "other.ckpt")


def test_weights_that_training_began_with_are_not_fetched(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("fetched"))
    network = from_torchvision(32, "resnet18", "none")
    for weights in ("IMAGENET1K_V1", "/no/such/file.pt"):
        trunk = {"_target_": "jtln.trunks.from_torchvision", "name": "resnet18", "weights": weights}
        assert load(write(trunk, network, image_size=32, stored_size=32).path).trunk.name == "resnet18"


def said(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["hyper_parameters"][KEY]


@pytest.mark.slow
def test_what_training_said_of_the_input_is_kept(write: Write) -> None:
    """googlenet with ImageNet's weights takes its images otherwise than without."""
    trunk = {"_target_": "jtln.trunks.from_torchvision", "name": "googlenet", "weights": "auto"}
    network = from_torchvision(32, "googlenet", "none")
    written = write(trunk, network, image_size=32, stored_size=32)
    found = load(written.path)
    assert found.trunk.body.transform_input
    network.body.transform_input = True
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        wanted = written.target_head(network(found.to_float(images))).softmax(1)
        torch.testing.assert_close(found(images), wanted)


def test_a_pair_is_described_by_all_that_its_images_are_read_with() -> None:
    spec = TinySpec()
    found = Description.of(spec, ALEXNET, "flip")
    assert found == Description(
        ALEXNET,
        ["ant", "bee", "cat", "dog"],
        ["elk", "fox", "gnu"],
        spec.image_size,
        spec.stored_size,
        spec.channels,
        spec.fit,
        "flip",
    )
    assert Description(**asdict(found)) == found
    assert replace(found, views="none") != found


# Code that a checkpoint names.


class Payload:
    """Unpickled, it writes the file "ran"."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('ran', 'w').close()",)


MODULE = {"_target_": "jtln.trunks.from_module", "mean": [0.5] * 3, "std": [0.5] * 3, "match": "name"}
RUNS = {  # a name -> arguments with which it would leave the file "ran" behind
    "os.system": {"command": "touch ran"},
    "torch.load": {"f": "payload.pt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": "hub", "model": "network", "source": "local"},
    "builtins.exec": {"_args_": ["open('ran', 'w').close()"]},
}
PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "itself": lambda call: call,
    "argument": lambda call: ALEXNET | {"dropout": call},
    "argument of an argument": lambda call: ALEXNET | {"dropout": {"first": {"second": call}}},
    "list": lambda call: ALEXNET | {"dropout": [0.5, [call]]},
    "argument of a call of ours": lambda call: ALEXNET | {"dropout": ALEXNET | {"width": call}},
}


@pytest.fixture
def in_a_trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which each of RUNS leaves "ran" behind; that they would is tested below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    Path("payload.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    Path("hub").mkdir()
    Path("hub/hubconf.py").write_text("open('ran', 'w').close()\ndef network(**_):\n    pass\n", encoding="utf-8")


@pytest.mark.usefixtures("in_a_trap")
@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "builtins.exec"])
def test_the_trap_is_one(name: str) -> None:
    module, _, function = name.rpartition(".")
    settings = {key: value for key, value in RUNS[name].items() if key != "_args_"}
    getattr(pytest.importorskip(module), function)(*RUNS[name].get("_args_", ()), **settings)
    assert Path("ran").exists()


@pytest.mark.usefixtures("in_a_trap")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", RUNS)
def test_code_of_others_is_refused_by_name(write: Write, name: str, place: str) -> None:
    written = write(PLACES[place]({"_target_": name, **RUNS[name]}))
    with pytest.raises(UserError, match=rf"names .*{name}.*trust=True") as caught:
        load(written.path)
    assert str(written.path) in str(caught.value)
    assert not Path("ran").exists()


@pytest.mark.usefixtures("in_a_trap")
@pytest.mark.parametrize("name", RUNS)
def test_code_in_the_place_of_a_head_is_refused_by_name(write: Write, name: str) -> None:
    written = write()
    for head in ({"kind": name, "settings": RUNS[name]}, {"kind": "jtln.heads.discriminant.Discriminant"}):
        settings = head.get("settings", {"shrinkage": {"_target_": name, **RUNS[name]}})
        change(written.path, head={"kind": head["kind"], "settings": settings, "state": {}})
        with pytest.raises(UserError, match=rf"expected a head of this package .*names .*{name}.*trust=True"):
            load(written.path)
        assert load(written.path, "source").classes == ("apple", "pear", "plum")  # which has no such head
    assert not Path("ran").exists()


@pytest.mark.usefixtures("in_a_trap")
@pytest.mark.parametrize("name", ["os.system", "torch.load", "torch.hub.load"])
def test_a_module_of_others_is_refused_by_name(write: Write, name: str) -> None:
    written = write(MODULE | {"path": name, **RUNS[name]})
    with pytest.raises(UserError, match=rf"names jtln\.trunks\.from_module, {name}, which.*trust=True"):
        load(written.path)
    assert not Path("ran").exists()


@pytest.mark.usefixtures("in_a_trap")
def test_a_file_that_runs_when_it_is_read_is_refused() -> None:
    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, "best.ckpt")
    for path in ("payload.pt", "best.ckpt"):
        with pytest.raises(UserError, match=rf"expected a checkpoint of a run.* in {path}"):
            load(path)
        with pytest.raises(UserError, match=rf"expected a checkpoint of a run.* in {path}"):
            load(path, trust=True)  # of the code that it names, not of what a file may be
    assert not Path("ran").exists()


@pytest.mark.usefixtures("in_a_trap")
@pytest.mark.parametrize("command", [predict, export])
def test_the_commands_refuse_it_in_one_line(
    write: Write, command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    written = write({"_target_": "os.system", "command": "touch ran"})
    images = ["."] if command is predict else []
    Path("0.png").write_bytes(b"")
    assert command([str(written.path), *images]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert len(told.err.splitlines()) == 1
    assert "os.system" in told.err
    assert "--trust" in told.err
    assert not Path("ran").exists()


MINE = """
from torch import nn

from jtln.heads import Cosine
from jtln.trunks import Trunk


def network(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())


def trunk(image_size, norm, layers, width=2):
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, width), norm(width), *layers)
    return Trunk(body, "mine", width, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Mine(Cosine):
    pass
"""
OWN = {
    "_target_": "own_trunk.trunk",
    "width": 7,
    "norm": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": 0.1},
    "layers": [{"_target_": "torch.nn.Softshrink", "_args_": [0.2]}],
}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_trunk.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = pytest.importorskip("own_trunk")
    yield module
    monkeypatch.delitem(sys.modules, "own_trunk")


def test_a_trunk_and_a_head_of_the_users_own(write: Write, own_module: Any) -> None:
    """With nested objects, which Hydra made in training."""
    norm = lambda width: nn.LayerNorm(width, eps=0.1)  # noqa: E731
    network = own_module.trunk(16, norm, [nn.Softshrink(0.2)], 7)
    written = write(OWN, network)
    torch.testing.assert_close(probabilities(load(written.path, trust=True)), expected(written, written.target_head))
    with pytest.raises(UserError, match=r"names own_trunk\.trunk, torch\.nn\.LayerNorm, torch\.nn\.Softshrink"):
        load(written.path)

    fitted = own_module.Mine().classifier(7, 4)
    fitted.weight.uniform_()
    written = write(OWN, network, own_module.Mine(), fitted)
    torch.testing.assert_close(probabilities(load(written.path, trust=True)), expected(written, fitted))


def test_a_network_of_the_users_own(write: Write, own_module: Any) -> None:
    network = from_module(16, "own_trunk.network", mean=[0.5] * 3, std=[0.5] * 3, width=5)
    written = write(MODULE | {"path": "own_trunk.network", "width": 5, "weights": "gone.pth"}, network)
    torch.testing.assert_close(probabilities(load(written.path, trust=True)), expected(written, written.target_head))
    with pytest.raises(UserError, match=r"names jtln\.trunks\.from_module, own_trunk\.network"):
        load(written.path)


@pytest.mark.usefixtures("own_module")
def test_a_trunk_that_does_not_fit_its_weights(write: Write) -> None:
    written = write(OWN, alexnet(16, "none", 0.05))
    with pytest.raises(UserError, match=r"network of .* again, trunk own_trunk\.trunk, but got: ") as caught:
        load(written.path, trust=True)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["own_trunk_elsewhere.trunk", "os.no_such_function", "trunk", ""])
def test_a_trunk_that_is_not_here(write: Write, name: str) -> None:
    written = write({"_target_": name})
    with pytest.raises(UserError, match=rf"trunk {name} of .* in this folder or installed"):
        load(written.path, trust=True)


# Mistakes.


def test_what_is_no_checkpoint_of_a_run_is_named(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write()
    with pytest.raises(UserError, match="unknown head 'both': expected one of target, source"):
        load(written.path, "both")
    with pytest.raises(UserError, match="unknown test_views 'many'"):
        load(written.path, views="many")
    with pytest.raises(UserError, match="there is no elsewhere"):
        load("elsewhere")
    with pytest.raises(UserError, match=r"there is no checkpoints/best\.ckpt"):
        load(".")
    Path("text.ckpt").write_text("no checkpoint", encoding="utf-8")
    with pytest.raises(UserError, match=r"in text\.ckpt"):
        load("text.ckpt")
    for broken in ({}, {KEY: {"trunk": {}}}, {KEY: said(written.path) | {"of_another_version": 1}}):
        change(written.path, hyper_parameters=broken)
        with pytest.raises(UserError, match="of this version of jtln"):
            load(written.path)
    with pytest.raises(UserError, match="made in Python"):
        load(write({}).path)
