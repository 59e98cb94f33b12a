"""The sound of a video, copied into another one while its frames are written."""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, cast

import av
from av.audio.stream import AudioStream

# What players of MP4 play; sound in other codecs is encoded again, as AAC.
_COPIED_CODECS = frozenset({"aac", "ac3", "alac", "eac3", "mp3", "opus"})
# ISO/IEC 14496-3, table 1.18.
_AAC_RATES = frozenset(
    {7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
)
_USUAL_RATE = 48_000

_Packet: TypeAlias = "av.Packet[Any]"


class SoundWarning(UserWarning):
    """The sound of a video cannot be copied to its end."""


class SoundCopy:
    """Copies all audio streams of a video into an open container, in step with its frames.

    Sound that cannot be copied costs no frame: it ends there, with a warning.

    Args:
        source: Video whose sound is copied; it may have none.
        target: Container to write to, to which nothing has been written yet.
        start: Time of the source, in seconds, that becomes zero.

    Warns:
        SoundWarning: The sound is damaged or of a form that cannot be written.
    """

    def __init__(self, source: Path, target: "av.container.OutputContainer", start: Fraction) -> None:
        self._source = source
        self._target = target
        self._start = start
        self._container = av.open(str(source.absolute()))
        self._streams: dict[int, tuple[AudioStream, bool]] = {}
        self._packets: Iterator[_Packet] = iter(())
        self._next: _Packet | None = None
        try:
            for stream in self._container.streams.audio:
                self._streams[stream.index] = self._add_stream(stream)
            self._packets = self._demux()
            self._next = next(self._packets, None)
        except (av.FFmpegError, ValueError) as error:
            self._stop(error)

    def write_until(self, seconds: Fraction | None) -> None:
        """Write the sound up to a time from the start, or all that is left if it is None."""
        try:
            while self._next is not None and (seconds is None or self._time(self._next) <= seconds):
                self._write(self._next)
                self._next = next(self._packets, None)
        except (av.FFmpegError, ValueError) as error:
            self._stop(error)

    def close(self) -> None:
        """Finish streams that were encoded again, and close the source."""
        try:
            for stream, copied in self._streams.values():
                if not copied and stream.codec_context.is_open:
                    self._target.mux(stream.encode(None))
        except (av.FFmpegError, ValueError) as error:
            self._stop(error)
        finally:
            self._container.close()

    def _add_stream(self, stream: AudioStream) -> tuple[AudioStream, bool]:
        """Return the stream of the target, and whether packets are copied into it as they are."""
        context = stream.codec_context
        if context.name in _COPIED_CODECS:
            return self._target.add_stream_from_template(stream), True
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else _USUAL_RATE
        added = self._target.add_stream("aac", rate=rate)
        # Sound of one or two channels need not name their order.
        added.layout = {1: "mono", 2: "stereo"}.get(context.layout.nb_channels, context.layout.name)
        return added, False

    def _demux(self) -> Iterator[_Packet]:
        if self._streams:
            for packet in self._container.demux(*self._container.streams.audio):
                if packet.dts is not None:
                    yield packet

    def _time(self, packet: _Packet) -> Fraction:
        assert packet.dts is not None
        return packet.dts * packet.time_base - self._start

    def _write(self, packet: _Packet) -> None:
        stream, copied = self._streams[packet.stream.index]
        if copied:
            shift = round(self._start / packet.time_base)
            packet.stream = stream
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.pts = None if packet.pts is None else packet.pts - shift
            self._target.mux(packet)
            return
        for frame in cast(list[av.AudioFrame], packet.decode()):
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(self._start / frame.time_base)
            self._target.mux(stream.encode(frame))

    def _stop(self, error: Exception) -> None:
        self._next, self._packets = None, iter(())
        reason = error.strerror if isinstance(error, av.FFmpegError) else str(error)
        warnings.warn(
            f"{self._source}: its sound cannot be copied further ({reason}), so that the written video has "
            "less of it",
            SoundWarning,
            stacklevel=3,
        )
