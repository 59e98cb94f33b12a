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


def _write(
    path: Path,
    frames: int = 5,
    rotation: int = 0,
    rate: Fraction = Fraction(10),
    matrix: tuple[int, ...] | None = None,
    pixel_aspect: Fraction | None = None,
    noise: bool = False,
    sound: str | None = None,
    options: dict[str, str] | None = None,
) -> None:
    """Write a video of ``RAMP`` or of noise, with twice as much silence as frames if it has sound."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 66, 50, "yuv420p", 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            stream.set_display_matrix(matrix)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        audio = container.add_stream(sound, rate=16000, layout="mono") if sound else None
        for _ in range(frames):
            pixels = random.integers(0, 255, RAMP.shape, dtype=np.uint8) if noise else RAMP
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = np.zeros((1, int(2 * frames / rate * 16000)), np.int16)
            block = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            block.sample_rate, block.time_base, block.pts = 16000, Fraction(1, 16000), 0
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))


def test_frames_come_in_order_as_rgb_with_their_rate(tmp_path: Path) -> None:
    _write(tmp_path / "clip.mp4")
    reader = VideoReader(tmp_path / "clip.mp4")
    frames = list(reader.frames())
    assert (reader.rate, reader.length, len(frames)) == (10, 5, 5)
    assert [frame.seconds for frame in frames] == [Fraction(index, 10) for index in range(5)]
    assert tuple(frames[0].image.shape) == (3, 50, 66)
    assert np.abs(frames[0].image.permute(1, 2, 0).numpy().astype(int) - RAMP).mean() < 6


def test_a_clip_filmed_on_its_side_is_read_upright(tmp_path: Path) -> None:
    # FFmpeg's convention: the angle by which a player turns the stored picture, counterclockwise.
    _write(tmp_path / "clip.mp4", frames=1, rotation=90)
    frame = next(VideoReader(tmp_path / "clip.mp4").frames()).image.permute(1, 2, 0).numpy().astype(int)
    assert frame.shape == (66, 50, 3)
    # Turned counterclockwise, the black upper left corner lies at the lower left, and the bright side on top.
    assert frame[-15:, :15].mean() < 30
    assert frame[:10].mean() > frame[40:].mean() + 60


# ISO/IEC 14496-12, 8.3.2: by the matrix (a, b, c, d), a stored pixel (x, y) is shown at (ax + cy, bx + dy).
@pytest.mark.parametrize(
    ("matrix", "operation"),
    [
        ((1, 0, 0, 1), None),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
        ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
        ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
        ((0, -1, -1, 0), Image.Transpose.TRANSVERSE),
    ],
)
def test_frames_are_turned_and_mirrored_as_the_file_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], operation: Image.Transpose | None
) -> None:
    a, b, c, d = (65536 * value for value in matrix)
    _write(tmp_path / "clip.mp4", frames=1, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    stored = Image.fromarray(RAMP)
    expected = np.asarray(stored if operation is None else stored.transpose(operation)).astype(int)
    frame = next(VideoReader(tmp_path / "clip.mp4").frames()).image.permute(1, 2, 0).numpy().astype(int)
    assert frame.shape == expected.shape
    assert np.abs(frame - expected).mean() < 6


@pytest.mark.parametrize(("rotation", "expected"), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_a_written_video_keeps_the_shape_of_its_pixels(
    tmp_path: Path, rotation: int, expected: Fraction
) -> None:
    _write(tmp_path / "clip.mp4", frames=2, rotation=rotation, pixel_aspect=Fraction(4, 3))
    _copy(tmp_path / "clip.mp4", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == expected


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
@pytest.mark.parametrize("sound", ["aac", None])
def test_a_truncated_video_is_not_taken_for_a_whole_one(
    tmp_path: Path, suffix: str, sound: str | None
) -> None:
    """FFmpeg reads a truncated file to its end without an error."""
    source = tmp_path / f"clip{suffix}"
    _write(source, frames=60, noise=True, sound=sound, options={"movflags": "faststart"})
    assert len(list(VideoReader(source).frames())) in (60, 61)  # an AVI file with sound begins with a gap
    content = source.read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(content[: len(content) // 2])
    frames = VideoReader(tmp_path / f"half{suffix}").frames()
    with pytest.raises(VideoError, match=rf"half\{suffix}: ends after frame \d+, at [23]\.\d of the 6"):
        for _ in frames:
            pass


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".avi"])
def test_a_video_that_starts_late_or_pauses_is_whole(tmp_path: Path, suffix: str) -> None:
    _write_varying(tmp_path / f"late{suffix}", "mp2", start_ms=2000, seconds=1.5)
    assert len(list(VideoReader(tmp_path / f"late{suffix}").frames())) == len(TIMES_MS)


def test_what_is_written_reads_back_with_even_sides(tmp_path: Path) -> None:
    picture = Image.fromarray(RAMP).resize((99, 75))
    _write(tmp_path / "clip.mp4", frames=4, rate=Fraction(30000, 1001))
    source = VideoReader(tmp_path / "clip.mp4")
    with VideoWriter(tmp_path / "out.mp4", source) as writer:
        for frame in source.frames():
            writer.add(picture, frame)
    reader = VideoReader(tmp_path / "out.mp4")
    frames = list(reader.frames())
    assert len(frames) == 4
    assert tuple(frames[0].image.shape) == (3, 74, 98)
    assert reader.rate == source.rate == Fraction(30000, 1001)
    assert [frame.seconds for frame in frames] == [Fraction(1001 * index, 30000) for index in range(4)]
    expected = np.asarray(picture.resize((98, 74))).astype(int)
    assert np.abs(frames[0].image.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 6


# A video whose rate varies, as telephones film: pauses of 420 and 460 ms.
TIMES_MS = [0, 40, 80, 500, 1000, 1040]


def _write_varying(path: Path, sound: str | None, start_ms: int = 0, seconds: float = 2) -> None:
    """Write a video of these times, with a tone in each second of which the first half is silent."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 66, 50, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream(sound, rate=16000, layout="mono") if sound else None
        for time in TIMES_MS:
            frame = av.VideoFrame.from_ndarray(RAMP, format="rgb24")
            frame.pts, frame.time_base = start_ms + time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            times = np.arange(int(16000 * seconds)) / 16000
            tone = np.where(times % 1 < 0.5, 0, np.sin(times * 2 * np.pi * 440) * 20000)
            block = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], format="s16", layout="mono")
            block.sample_rate, block.time_base = 16000, Fraction(1, 16000)
            block.pts = start_ms * 16
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))


def _copy(source: Path, target: Path) -> VideoReader:
    reader = VideoReader(source)
    with VideoWriter(target, reader) as writer:
        for frame in reader.frames():
            writer.add(Image.fromarray(RAMP), frame)
    return VideoReader(target)


def _loudness(path: Path) -> tuple[str, list[float]]:
    """Return the codec of the sound, and its loudness in each half second by its times in the file."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        halves: dict[int, list[float]] = {}
        for frame in container.decode(stream):
            samples = np.asarray(frame.to_ndarray(), dtype=float)
            samples /= 32768 if frame.format.name.startswith("s16") else 1
            half = int(2 * (frame.time + frame.samples / frame.sample_rate / 2))
            halves.setdefault(half, []).append(float(np.abs(samples).mean()))
        return stream.codec_context.name, [float(np.mean(halves[half])) for half in sorted(halves)]


@pytest.mark.parametrize(("suffix", "sound"), [(".mp4", "aac"), (".mkv", "pcm_s16le"), (".mkv", None)])
def test_a_video_keeps_its_times_its_rate_and_its_sound(
    tmp_path: Path, suffix: str, sound: str | None
) -> None:
    source = tmp_path / f"clip{suffix}"
    _write_varying(source, sound)
    found = _copy(source, tmp_path / "out.mp4")
    assert [round(1000 * frame.seconds) for frame in VideoReader(source).frames()] == TIMES_MS
    assert [round(1000 * frame.seconds) for frame in found.frames()] == TIMES_MS
    # Six frames, of which the last is shown for 40 ms.
    assert float(found.rate) == pytest.approx(6 / 1.08, rel=0.01)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams.audio) == (0 if sound is None else 1)
    if sound is not None:
        codec, halves = _loudness(tmp_path / "out.mp4")
        assert codec == "aac"
        assert len(halves) >= 4, "the sound is longer than the frames, and all of it stays"
        for half, loud in enumerate(halves[:4]):
            assert (loud > 0.1) == bool(half % 2)


def test_times_count_from_the_start_of_a_file_that_starts_later(tmp_path: Path) -> None:
    _write_varying(tmp_path / "clip.ts", "mp2", start_ms=700)
    with av.open(str(tmp_path / "clip.ts")) as container:
        assert container.start_time > 500_000
    frames = list(VideoReader(tmp_path / "clip.ts").frames())
    assert [round(1000 * (frame.seconds - frames[0].seconds)) for frame in frames] == TIMES_MS
    assert frames[0].seconds < 0.05
    found = list(_copy(tmp_path / "clip.ts", tmp_path / "out.mp4").frames())
    for one, other in zip(found, frames, strict=True):
        assert float(one.seconds) == pytest.approx(float(other.seconds), abs=2e-3)
    assert [loud > 0.1 for loud in _loudness(tmp_path / "out.mp4")[1][:4]] == [False, True, False, True]


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "http:a.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(list(_copy(Path("http:a.mp4"), Path("rtp:b.mp4")).frames())) == 5


def test_an_error_leaves_a_video_of_the_frames_so_far(tmp_path: Path) -> None:
    _write_varying(tmp_path / "clip.mp4", "aac")
    reader = VideoReader(tmp_path / "clip.mp4")

    def write_some() -> None:
        with VideoWriter(tmp_path / "out.mp4", reader) as writer:
            for frame in reader.frames():
                writer.add(Image.fromarray(RAMP), frame)
                if frame.seconds >= 0.5:
                    raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        write_some()
    found = VideoReader(tmp_path / "out.mp4").frames()
    assert [round(1000 * frame.seconds) for frame in found] == TIMES_MS[:4]
    assert len(_loudness(tmp_path / "out.mp4")[1]) <= 2, "the sound ends with the frames"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


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
