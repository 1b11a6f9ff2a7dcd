import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from jtln.cli import user_warnings
from jtln.cli.user_warnings import in_words


def shown(text: str, category: type[Warning] = UserWarning, filename: str = user_warnings.__file__) -> str:
    return warnings.formatwarning(text, category, filename, 7)


def test_a_warning_is_told_in_words_and_once() -> None:
    usual = warnings.formatwarning
    with in_words():
        assert shown("a crane is a bird") == "warning: a crane is a bird\n"
        assert shown("a crane is a bird") == ""
        assert shown("no test image of: bee") == "warning: no test image of: bee\n"
        assert f"{user_warnings.__file__}:7: DeprecationWarning: old" in shown("old", DeprecationWarning)
        assert shown("theirs", filename="elsewhere.py") == shown("theirs", filename="elsewhere.py")
        assert "elsewhere.py:7: UserWarning: theirs" in shown("theirs", filename="elsewhere.py")
    assert warnings.formatwarning is usual
    with in_words():  # another call
        assert shown("a crane is a bird") == "warning: a crane is a bird\n"


def test_what_is_recorded_is_recorded() -> None:
    with in_words(), pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


@pytest.mark.slow
def test_a_command_names_doubtful_classes_once(tmp_path: Path) -> None:
    for name in ("dog", "cat", "crane", "seal"):
        (tmp_path / "x" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "x" / name / "0.png")
    call = f"cost=wordnet dataset=folder dataset.target.root={tmp_path}/x dataset/source=same"
    done = subprocess.run(
        [sys.executable, "-m", "jtln", "cost", *call.split(), "dataset.target_classes=[dog,crane]"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        check=True,
    )
    assert done.stderr.count("crane.n.05") == 1
    assert "warning: 4 of 4 class names have several meanings" in done.stderr
    assert "linking.py" not in done.stderr
    assert "wordnet.py" not in done.stderr
