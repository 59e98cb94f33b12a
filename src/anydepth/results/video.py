"""Reading and writing video frames with PyAV."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, cast

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anydepth.results.sound import SoundCopy
from anydepth.utils.files import partial_path

# Suffixes of files that are read as video; FFmpeg reads all of these containers.
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})

# Frames per second of files that state none: the rate of European television.
_DEFAULT_RATE = Fraction(25)
# mpeg4 is FFmpeg's own encoder, which is also part of builds without x264.
_CODEC: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"


# MPEG-4 Part 2 counts time in at most 65535 units a second; this many suit 24, 25, 30, 50 and 60 frames.
_MPEG4_TIME_BASE = Fraction(1, 60_000)
_FINEST_MPEG4 = 65_535
# Tag that muxers of Matroska write for each stream: the time at which it ends.
_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


class VideoError(ValueError):
    """Unreadable video; the message names the file."""


class Frame(NamedTuple):
    """Frame of a video.

    Attributes:
        image: [3, H, W] uint8 RGB, upright.
        seconds: Time at which players show it, from the start of the video; of the file, not of a rate.
        duration: Seconds for which players show it, if it is the last one.
        pixel_aspect: Width by height at which players show each pixel; 1 unless the video is anamorphic.
    """

    image: Tensor
    seconds: Fraction
    duration: Fraction
    pixel_aspect: Fraction = Fraction(1)


class VideoReader:
    """Reads the frames of a video, turned and mirrored as players show them, in the pixels of the file.

    Args:
        path: File with at least one video stream; the first is read.

    Attributes:
        path: The file.
        rate: Frames per second on average; the rate of frames may vary.
        length: Number of frames, if the file states it.
        end: Time in the file, in seconds, at which its headers say that the video ends; None if they do not.
        time_base: Unit in which the file counts time, in seconds.
        start: Time in the file at which it starts, in seconds.

    Raises:
        VideoError: The file is missing or not a video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        self._file = str(self.path.absolute())
        try:
            with av.open(self._file) as container:
                stream = self._stream(container)
                self.rate = stream.average_rate or stream.guessed_rate or _DEFAULT_RATE
                self.length = stream.frames or None
                self.time_base = stream.time_base or 1 / self.rate
                self.start = Fraction(container.start_time or 0, av.time_base)
                self.end = _stated_end(container, stream)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path}: not a readable video ({error.strerror}); restore the file") from error

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order.

        A frame without a time in the file follows the one before it when that has been shown.

        Raises:
            VideoError: The video is damaged, ends before the time that it states, or holds no frame.
        """
        count = 0
        following = Fraction(0)
        try:
            with av.open(self._file) as container:
                stream = self._stream(container)
                for frame in container.decode(stream):
                    array, swapped = _turn_upright(frame)
                    seconds = following
                    if frame.pts is not None and frame.time_base:
                        # The start is rounded to microseconds.
                        seconds = max(frame.pts * frame.time_base - self.start, Fraction(0))
                    duration = 1 / self.rate
                    if frame.duration and frame.time_base:
                        duration = frame.duration * frame.time_base
                    following = seconds + duration
                    count += 1
                    image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
                    aspect = stream.sample_aspect_ratio or Fraction(1)
                    yield Frame(image, seconds, duration, 1 / aspect if swapped else aspect)
        except av.FFmpegError as error:
            raise VideoError(
                f"{self.path}: damaged after frame {count} ({error.strerror}); restore or trim the file"
            ) from error
        if not count:
            raise VideoError(f"{self.path}: the video has no frames; restore the file")
        # FFmpeg takes the end of a truncated file for the end of the video.
        found = following + self.start
        if self.end is not None and self.end - found > max(0.5, 0.02 * self.end):
            raise VideoError(
                f"{self.path}: ends after frame {count}, at {float(found):.1f} of the {float(self.end):.1f} "
                "seconds that it states; copy the file again if it is truncated"
            )

    def _stream(self, container: "av.container.InputContainer") -> VideoStream:
        if not container.streams.video:
            raise VideoError(f"{self.path}: the file has no video stream; choose a video")
        return container.streams.video[0]


def _turn_upright(frame: av.VideoFrame) -> tuple[NDArray[np.uint8], bool]:
    """Return the pixels of a frame as its display matrix says, and whether width and height are swapped.

    The matrix (ISO/IEC 14496-12, 8.3.2) turns by 90, 180 or 270 degrees, mirrors, or both; PyAV's
    ``rotation`` is an angle alone, for which a mirrored frame is one that is turned by 180 degrees.

    Returns:
        [H, W, 3] uint8 RGB; of other matrices, which players do not follow either, the stored pixels.
    """
    pixels = cast(NDArray[np.uint8], frame.to_ndarray(format="rgb24"))
    data = cast("Mapping[SideDataType, SideData]", frame.side_data).get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return pixels, False
    matrix = np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)
    # A pixel (x, y) is shown at (ax + cy, bx + dy), in 16.16 fixed point.
    (a, b), (c, d) = np.sign(np.rint(matrix[:2, :2] / 65536)).astype(int).tolist()
    if a and d and not (b or c):
        return pixels[:: int(d), :: int(a)], False
    if b and c and not (a or d):
        return pixels.transpose(1, 0, 2)[:: int(b), :: int(c)], True
    return pixels, False


def _stated_end(container: "av.container.InputContainer", stream: VideoStream) -> Fraction | None:
    """Return the time at which the headers of a file say that the video ends; they stay when its end is lost.

    None for containers without such headers: what FFmpeg says of them is the time of the last packet found.
    """
    names = set(container.format.name.split(","))
    if "mp4" in names and stream.duration and stream.time_base:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    if "avi" in names and stream.frames and stream.average_rate:
        # FFmpeg derives the duration from the size of the file.
        return stream.frames / stream.average_rate
    if "matroska" in names:
        tags = {key.upper().partition("-")[0]: value for key, value in stream.metadata.items()}
        if match := _DURATION.fullmatch(tags.get("DURATION", "").strip("\0 ")):
            return int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])
        if container.duration and len(container.streams) == 1:
            return Fraction(container.duration, av.time_base)
    return None


class VideoWriter:
    """Writes the frames of a video again, with its times, its rate and its sound; a context manager.

    The file appears when the block ends, also after an error: with the frames so far, and never unplayable.

    Args:
        path: File to write; its suffix selects the container. Its folder must exist by the first frame.
        source: Video that the frames come from.

    Warns:
        SoundWarning: The sound of the source is damaged.
    """

    def __init__(self, path: str | Path, source: VideoReader) -> None:
        self._path = Path(path)
        self._partial = partial_path(self._path)
        self._source = source
        self._time_base = source.time_base
        if _CODEC == "mpeg4" and self._time_base.denominator > _FINEST_MPEG4:
            self._time_base = _MPEG4_TIME_BASE
        self._container: av.container.OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._sound: SoundCopy | None = None
        self._ticks = -1
        self._durations: dict[int | None, int] = {}

    def add(self, picture: Image.Image, source: Frame) -> None:
        """Append a frame.

        Args:
            picture: Frame; those after the first are scaled to its size.
            source: Frame of the source that it shows, for its times. Of frames that are not later than the
                one before, which players refuse, each is moved to the next unit of time.
        """
        stream = self._stream or self._open(picture, source.pixel_aspect)
        size = (stream.width, stream.height)
        pixels = np.asarray(picture if picture.size == size else picture.resize(size))
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._ticks = max(round(source.seconds / self._time_base), self._ticks + 1)
        frame.pts, frame.time_base = self._ticks, self._time_base
        self._durations[self._ticks] = max(1, round(source.duration / self._time_base))
        if self._sound is not None:
            self._sound.write_until(source.seconds)
        self._mux(stream.encode(frame))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._container is None:
            return
        try:
            try:
                if self._stream is not None:
                    self._mux(self._stream.encode(None))
                if self._sound is not None:
                    # After an error, up to the last frame.
                    self._sound.write_until(None if kind is None else self._ticks * self._time_base)
                    self._sound.close()
            finally:
                self._container.close()
            self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _open(self, picture: Image.Image, pixel_aspect: Fraction) -> VideoStream:
        self._container = av.open(str(self._partial.absolute()), mode="w")
        stream = self._stream = self._container.add_stream(_CODEC, rate=self._source.rate)
        stream.codec_context.time_base = self._time_base
        # yuv420p, which every player reads, stores chroma at half resolution and needs even sides.
        stream.width, stream.height = (max(2, side // 2 * 2) for side in picture.size)
        stream.pix_fmt = "yuv420p"
        if pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        # The default of 1 Mbit/s blurs the labels.
        stream.bit_rate = 8_000_000
        # Frames that are predicted from later ones are stored out of order, which blurs the times of a video
        # whose rate varies.
        stream.codec_context.max_b_frames = 0
        self._sound = SoundCopy(self._source.path, self._container, self._source.start)
        return stream

    def _mux(self, packets: "list[av.Packet[VideoStream]]") -> None:
        assert self._container is not None
        for packet in packets:
            # Containers keep that of the last frame alone, which no other frame ends.
            packet.duration = self._durations.pop(packet.pts, 0)
            self._container.mux(packet)
