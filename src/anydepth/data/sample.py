"""The embedded sample: real airborne photographs with tree-crown boxes, ready to train on.

56 training tiles of 400 x 400 px that overlap, and 19 validation tiles of 320 x 320 px that share no pixel
with them or with each other; one class. ``sample/ATTRIBUTION.md`` names the source and its licence (MIT),
and ``scripts/make_sample.py`` of the source repository cuts the tiles.
"""

from pathlib import Path


def sample_root() -> Path:
    """Return the sample's folder of ``images/{train,val}`` and ``annotations/instances_{train,val}.json``."""
    return Path(__file__).with_name("sample")
