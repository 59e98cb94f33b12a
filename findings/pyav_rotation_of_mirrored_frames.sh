#!/usr/bin/env bash
# PyAV 18.1.0 (its wheel has libavutil 60.26): `VideoFrame.rotation` says 180 degrees for a frame that is mirrored.
#
# A video may say how to show its frames by a display matrix (ISO/IEC 14496-12, 8.3.2), which turns them, mirrors
# them, or both; players and the ffmpeg program follow it. `rotation` is the angle alone, computed from the matrix as if
# it never mirrored. Whoever turns frames by it gets a mirrored video upside down and its left on the right side,
# without a warning:
#
#   matrix                                  right                      by `rotation`
#   mirrored left to right                  mirrored left to right     turned by 180 degrees
#   mirrored top to bottom                  mirrored top to bottom     as stored
#   mirrored, and turned by 90 degrees      the transposed frame       turned by 90 degrees, not mirrored
#
# The nine numbers are in the side data DISPLAYMATRIX of each frame. A good guess would have been that PyAV, whose
# `Stream.set_display_rotation` takes `hflip` and `vflip`, reads back what it wrote.
#
# Output seen: each line below as asserted. Needs Python 3.11 or newer and a package index; installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" av==18.1.0 numpy==2.4.6
PYTHONPATH="$folder/packages" python3 - "$folder" <<'PY'
import sys
from pathlib import Path

import av
import numpy as np

pixels = np.zeros((32, 64, 3), np.uint8)
pixels[:16, :32] = 255  # white in the upper left corner


def rotation(turned: float, *, hflip: bool = False, vflip: bool = False) -> tuple[int, list[float]]:
    path = Path(sys.argv[1], "clip.mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(turned, hflip=hflip, vflip=vflip)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        # The stored pixels, whatever the matrix says.
        assert frame.to_ndarray(format="rgb24")[:12, :28].mean() > 200
        matrix = np.frombuffer(bytes(frame.side_data.get("DISPLAYMATRIX")), np.int32) / 65536
        return frame.rotation, [round(float(value)) for value in matrix[[0, 1, 3, 4]]]


print("av", av.__version__)
seen = {
    "turned by 90": rotation(90),
    "turned by 180": rotation(180),
    "mirrored left to right": rotation(0, hflip=True),
    "mirrored top to bottom": rotation(0, vflip=True),
    "turned by 90 and mirrored": rotation(90, hflip=True),
}
for name, (angle, matrix) in seen.items():
    print(f"{name:27} rotation {angle:4}   matrix a b c d {matrix}")
assert seen["mirrored left to right"][1] == [-1, 0, 0, 1]
assert abs(seen["mirrored left to right"][0]) == abs(seen["turned by 180"][0]) == 180
assert seen["mirrored top to bottom"] == (0, [1, 0, 0, -1])
assert abs(seen["turned by 90 and mirrored"][0]) == abs(seen["turned by 90"][0]) == 90
print("as described: the angle does not tell mirrored frames from turned ones")
PY
