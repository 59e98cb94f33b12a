"""``anydepth-data look``."""

import re
from pathlib import Path

import pytest
from PIL import Image

from anydepth.commands.data import main


def test_batches_are_drawn_with_their_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Overrides may stand on both sides of the options."""
    options = ["--out", str(tmp_path / "pictures"), "--epochs", "0", "7", "--batches", "1"]
    settings = ["data.num_workers=0", "augmentation=none"]
    assert main(["look", "detector.input_size=[64,96]", *options, *settings]) == 0
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == ["epoch0_batch0.jpg", "epoch7_batch0.jpg"]
    sheet = Image.open(tmp_path / "pictures" / found[0])
    # Four images of 64 x 96 in a row, with titles; boxes are drawn in a colour that no tree has.
    assert sheet.width > sheet.height
    colours = {pixel for _, pixel in sheet.getcolors(1 << 24) or ()}
    assert any(red > 220 and blue < 110 for red, _, blue in colours)
    printed = capsys.readouterr().out
    assert "median" in printed
    assert "pictures" in printed


def test_a_wrong_setting_is_one_readable_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["look", "--out", str(tmp_path), "data=nonsense"])
    assert caught.value.code == 1
    message = capsys.readouterr().err
    assert "nonsense" in message
    assert "Traceback" not in message


def test_presets_of_ones_own_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "presets" / "data").mkdir(parents=True)
    (tmp_path / "presets" / "data" / "mine.yaml").write_text("defaults: [sample, _self_]\nbatch_size: 2\n")
    options = ["--config-dir", str(tmp_path / "presets"), "--out", str(tmp_path / "out"), "--batches", "1"]
    assert main(["look", *options, "data=mine", "data.num_workers=0", "detector.input_size=[64,64]"]) == 0
    # Epoch 0, batch 0, images of the batch; the batches of the sample have more.
    assert re.search(r"│ 0 +│ 0 +│ 2 +│", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["look", "--config-dir", str(tmp_path / "gone"), "data=mine"])
    assert "no such folder; give a folder" in capsys.readouterr().err
