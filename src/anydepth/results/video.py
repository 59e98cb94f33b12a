"""Reading and writing video frames with PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor

from anydepth.utils.files import partial_path

# Suffixes of files that are read as video; FFmpeg reads all of these containers.
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})

# Frames per second of files that state none: the rate of European television.
_DEFAULT_RATE = Fraction(25)
# mpeg4 is FFmpeg's own encoder, which is also part of builds without x264.
_CODEC: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"


class VideoError(ValueError):
    """Unreadable video; the message names the file."""


class VideoReader:
    """Reads the frames of a video, rotated upright.

    Args:
        path: File with at least one video stream; the first is read.

    Raises:
        VideoError: The file is missing or not a video.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            with av.open(str(path)) as container:
                stream = self._stream(container)
                self.rate = stream.average_rate or stream.guessed_rate or _DEFAULT_RATE
                self.length = stream.frames or None
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path}: not a readable video ({error.strerror}); restore the file") from error

    def frames(self) -> Iterator[Tensor]:
        """Yield frames [3, H, W] uint8 RGB in order.

        Raises:
            VideoError: The video is damaged, or holds no frame.
        """
        count = 0
        try:
            with av.open(str(self._path)) as container:
                for frame in container.decode(self._stream(container)):
                    array = np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
                    count += 1
                    yield torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
        except av.FFmpegError as error:
            raise VideoError(
                f"{self._path}: damaged after frame {count} ({error.strerror}); restore or trim the file"
            ) from error
        if not count:
            raise VideoError(f"{self._path}: the video has no frames; restore the file")

    def _stream(self, container: "av.container.InputContainer") -> VideoStream:
        if not container.streams.video:
            raise VideoError(f"{self._path}: the file has no video stream; choose a video")
        return container.streams.video[0]


class VideoWriter:
    """Writes frames of one size as a video without sound; a context manager.

    The file appears when the block ends, also after an error: with the frames so far, and never unplayable.

    Args:
        path: File to write; its suffix selects the container. Its folder must exist by the first frame.
        rate: Frames per second.
    """

    def __init__(self, path: str | Path, rate: Fraction) -> None:
        self._path = Path(path)
        self._partial = partial_path(self._path)
        self._rate = rate
        self._container: av.container.OutputContainer | None = None
        self._stream: VideoStream | None = None

    def add(self, picture: Image.Image) -> None:
        """Append a frame; those after the first are scaled to its size."""
        if self._container is None:
            self._container = av.open(str(self._partial), mode="w")
        stream = self._stream
        if stream is None:
            stream = self._stream = self._container.add_stream(_CODEC, rate=self._rate)
            # yuv420p, which every player reads, stores chroma at half resolution and needs even sides.
            stream.width, stream.height = picture.width // 2 * 2, picture.height // 2 * 2
            stream.pix_fmt = "yuv420p"
            # The default of 1 Mbit/s blurs the labels.
            stream.bit_rate = 8_000_000
        size = (stream.width, stream.height)
        pixels = np.asarray(picture if picture.size == size else picture.resize(size))
        for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
            self._container.mux(packet)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._container is None:
            return
        try:
            try:
                if self._stream is not None:
                    for packet in self._stream.encode(None):
                        self._container.mux(packet)
            finally:
                self._container.close()
            self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)
