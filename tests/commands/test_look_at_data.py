"""The script that draws training batches."""

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image


def test_batches_are_drawn_with_their_boxes(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["detector.input_size=[64,96]", "data.num_workers=0", "augmentation=none"]
    script.main(["--out", str(tmp_path / "pictures"), "--epochs", "0", "7", "--batches", "1", *settings])
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == ["epoch0_batch0.jpg", "epoch7_batch0.jpg"]
    sheet = Image.open(tmp_path / "pictures" / found[0])
    # Four images of 64 x 96 beside each other, with titles; boxes are drawn in a colour that no tree has.
    assert sheet.width > sheet.height
    colours = {pixel for _, pixel in sheet.getcolors(1 << 24) or ()}
    assert any(red > 220 and blue < 110 for red, _, blue in colours)
    printed = capsys.readouterr().out
    assert "median" in printed
    assert "pictures" in printed
