"""Videos are read upright and written so that they can be read again."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from anydepth.results.video import VideoError, VideoReader, VideoWriter

# Frames 66 x 50: brightness rises from left to right, the upper left corner is black.
RAMP = np.repeat(np.linspace(60, 220, 66).astype(np.uint8)[None, :, None], 50, axis=0).repeat(3, axis=2)
RAMP[:20, :20] = 0


def _write(path: Path, frames: int = 5, rotation: int = 0) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 66, 50, "yuv420p", 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(RAMP, format="rgb24")))
        container.mux(stream.encode(None))


def test_frames_come_in_order_as_rgb_with_their_rate(tmp_path: Path) -> None:
    _write(tmp_path / "clip.mp4")
    reader = VideoReader(tmp_path / "clip.mp4")
    frames = list(reader.frames())
    assert (reader.rate, reader.length, len(frames)) == (10, 5, 5)
    assert tuple(frames[0].shape) == (3, 50, 66)
    assert np.abs(frames[0].permute(1, 2, 0).numpy().astype(int) - RAMP).mean() < 6


def test_a_clip_filmed_on_its_side_is_read_upright(tmp_path: Path) -> None:
    # FFmpeg's convention: the angle by which a player turns the stored picture, counterclockwise.
    _write(tmp_path / "clip.mp4", frames=1, rotation=90)
    frame = next(VideoReader(tmp_path / "clip.mp4").frames()).permute(1, 2, 0).numpy().astype(int)
    assert frame.shape == (66, 50, 3)
    # Turned counterclockwise, the black upper left corner lies at the lower left, and the bright side on top.
    assert frame[-15:, :15].mean() < 30
    assert frame[:10].mean() > frame[40:].mean() + 60


def test_what_is_written_reads_back_with_even_sides(tmp_path: Path) -> None:
    picture = Image.fromarray(RAMP).resize((99, 75))
    with VideoWriter(tmp_path / "out.mp4", Fraction(30000, 1001)) as writer:
        for _ in range(4):
            writer.add(picture)
    reader = VideoReader(tmp_path / "out.mp4")
    frames = list(reader.frames())
    assert len(frames) == 4
    assert tuple(frames[0].shape) == (3, 74, 98)
    assert float(reader.rate) == pytest.approx(30000 / 1001, rel=0.01)
    expected = np.asarray(picture.resize((98, 74))).astype(int)
    assert np.abs(frames[0].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 6


def test_files_that_are_not_videos_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: not a readable video"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match=r"absent\.mp4"):
        VideoReader(tmp_path / "absent.mp4")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        VideoReader(tmp_path / "sound.mkv")
