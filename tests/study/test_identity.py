"""What identifies a run of a study includes its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from jtln.cli.train import main
from jtln.study.job import settings_hash

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")


def test_the_hash_of_the_settings_and_the_data() -> None:
    config = {"method": {"name": "joint"}, "seed": 0}
    assert settings_hash(config) == settings_hash(config, "")
    assert len({settings_hash(config, data) for data in ("", "one", "other")}) == 3


@pytest.mark.slow
def test_a_study_on_other_images_makes_its_runs_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a class is added to the target, and where a file has other pixels under the same name, size and time."""

    def fill(folder: str, names: str, shade: int) -> None:
        for name in names.split():
            (tmp_path / folder / name).mkdir(parents=True)
            for index in range(8):
                shade = (shade * 7 + 13) % 256
                Image.new("RGB", (32, 32), (shade, 255 - shade, index * 20)).save(
                    tmp_path / folder / name / f"{index}.png"
                )

    fill("S", "dog cat car boat", 3)
    fill("T", "wolf lion truck", 5)
    roots = ["dataset.source.root=S", "dataset.target.root=T", "dataset.image_size=32", "dataset.crop=null"]
    small = ["cost=uniform", "trunk.width=0.05", "trainer=cpu", "trainer.progress_bar=false", "study.workers=1"]
    tiny = ["study.shots=1", "study.seeds=1", "study.only=[consecutive]", "dataset.validation=1"]
    call = ["-m", "study=quick", "dataset=folder", *roots, *(each for each in small if each != "cost=uniform"), *tiny]
    for expected in (0, 1):
        capsys.readouterr()
        assert main(call) == 0
        assert f"of which {expected} are done" in capsys.readouterr().out
    fill("T", "bus", 11)
    assert main(call) == 0
    assert "of which 0 are done" in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in tmp_path.glob("studies/runs/*/result.json")]
    assert len(results) == 2
    assert len({each["settings"]["run"] for each in results}) == 2
