"""Copy-paste: objects of the mirrored canvas, pasted where they cover little."""

import numpy as np
from numpy.typing import NDArray

from anydepth.data.augment.affine import AxisMap, Floats
from anydepth.data.augment.random_arguments import check_between, check_probability
from anydepth.data.augment.scene import Scene, Tile
from anydepth.data.outlines import Outlines


class CopyPaste:
    """Copy-paste of mirrored objects into their own canvas (Ghiasi et al., CVPR 2021, as YOLO does it).

    The canvas is mirrored left to right. Candidates are its objects with a polygon whose box covers less than
    ``max_cover`` of every existing box; those that cover least are pasted. Nothing is drawn at random.

    Args:
        share: Share of the candidates that is pasted.
        max_cover: Maximum share of an object's box that a pasted box may cover.
    """

    def __init__(self, *, share: float = 0.5, max_cover: float = 0.3) -> None:
        self.share = check_probability("share", share)
        self.max_cover = check_between("max_cover", max_cover, 0, 1)

    def __call__(self, scene: Scene) -> Scene:
        """Paste objects on top of the scene."""
        outlined = scene.outlines.outlined.nonzero()[0]
        if not len(outlined) or not self.share:
            return scene
        mirror = AxisMap((-1.0, 1.0), (float(scene.size[1]), 0.0))
        boxes = mirror.map_boxes(scene.boxes_xyxy[outlined])  # [M, 4]
        cover = _coverage(scene.boxes_xyxy, boxes).max(axis=0)  # [M]
        order = np.argsort(cover, kind="stable")
        free = order[cover[order] < self.max_cover]
        chosen = free[: round(self.share * len(free))]
        return _paste(scene, mirror, outlined[chosen], boxes[chosen]) if len(chosen) else scene


def _paste(scene: Scene, mirror: AxisMap, objects: NDArray[np.int64], boxes: Floats) -> Scene:
    """Paste the mirror images of these objects [M], whose mirrored boxes [M, 4] are given."""
    outlines = mirror.map_outlines(scene.outlines.take(objects))
    tiles = list(scene.tiles)
    for number, (source, box) in enumerate(zip(scene.tile_of[objects], boxes.tolist(), strict=True)):
        tile, shape = scene.tiles[source], outlines.take(np.array([number]))
        tiles.append(Tile(tile.image, tile.place.then(mirror), (box[0], box[1], box[2], box[3]), shape))
    return Scene(
        scene.size,
        tuple(tiles),
        np.concatenate([scene.boxes_xyxy, boxes]),
        np.concatenate([scene.labels, scene.labels[objects]]),
        Outlines.concatenate([scene.outlines, outlines]),
        np.concatenate([scene.tile_of, np.arange(len(scene.tiles), len(tiles))]),
    )


def _coverage(boxes: Floats, by: Floats) -> Floats:
    """Return the share of each of N boxes that each of M others covers [N, M]."""
    low = np.maximum(boxes[:, None, :2], by[None, :, :2])  # [N, M, 2]
    high = np.minimum(boxes[:, None, 2:], by[None, :, 2:])  # [N, M, 2]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)  # [N]
    covered: Floats = np.prod((high - low).clip(0), axis=2) / area[:, None]  # [N, M]
    return covered
