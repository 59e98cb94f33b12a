"""Names that published YOLOv12 and AnyDepth-YOLO checkpoints give to the weights of our network.

Rules translate our plain names into theirs, see :func:`~anydepth.weights.plan.plain_names`. Published
networks are lists of layers, named by their position: 0 to 8 backbone, 11 to 20 neck, 21 head. In files,
``model.`` precedes the position once, several times or not at all; the rules use keys without it.
"""

import re

from anydepth.weights.plan import Layout, Rule

_LAYER_PREFIX = re.compile(r"^(?:model\.)+(?=\d+\.)")

_LAYERS: tuple[Rule, ...] = (
    (r"^backbone\.stem\.(\d)\b", r"\1"),
    (r"^backbone\.stages\.(\d)\b", lambda m: str(2 + 2 * int(m[1]))),
    (r"^backbone\.downs\.(\d)\b", lambda m: str(3 + 2 * int(m[1]))),
    (r"^neck\.stages\.(\d)\b", lambda m: str(11 + 3 * int(m[1]))),
    (r"^neck\.downs\.(\d)\b", lambda m: str(15 + 3 * int(m[1]))),
    (r"^head\.box_branches\.(\d)\b", r"21.cv2.\1"),
    (r"^head\.class_branches\.(\d)\.4\b", r"21.cv3.\1.2"),
    (r"^head\.class_branches\.(\d)\.(\d)\b", lambda m: f"21.cv3.{m[1]}.{int(m[2]) // 2}.{int(m[2]) % 2}"),
    (r"^head\.bins$", "21.dfl.conv.weight"),
)
_BLOCKS: tuple[Rule, ...] = (
    (r"\.entry\.", ".cv1."),
    (r"\.fusion\.fuse\.", ".cv2."),
    (r"\.fusion\.skip_conv\.", ".cv2.conv_skip."),
    (r"\.blocks\.", "."),
    (r"\.(chain|bottlenecks)\.", ".m."),
    (r"\.conv([123])\.(?=conv|bn)", r".cv\1."),
    (r"\.attention\.queries_keys\.", ".attn.qk."),
    (r"\.attention\.values\.", ".attn.v."),
    (r"\.attention\.position\.", ".attn.pe."),
    (r"\.attention\.project\.", ".attn.proj."),
    (r"\.expand\.", ".mlp.0."),
    (r"\.contract\.", ".mlp.1."),
)


def remove_layer_prefix(key: str) -> str:
    """Return a published key from the position of its layer on; other keys do not change."""
    return _LAYER_PREFIX.sub("", key)


def _published_norms(plain: str) -> str:
    return plain.replace(".norm.full.", ".bn.").replace(".norm.skip.", ".bn_skip.")


_ATTENTION = "6.m.0.0.attn.qk.conv.weight"

OURS = Layout(
    name="anydepth",
    markers=((("backbone.stages.0.entry.conv.weight",), ""),),
    rules=(),
    norm_name=lambda plain: plain,
)
ANYDEPTH = Layout(
    name="AnyDepth-YOLO of its authors",
    markers=((("0.conv.weight", _ATTENTION, "3.bn_skip.weight"), ""),),
    rules=(*_LAYERS, *_BLOCKS),
    norm_name=_published_norms,
)
YOLOV12 = Layout(
    name="YOLOv12 (turbo)",
    markers=((("0.conv.weight", _ATTENTION), ""),),
    rules=(*_LAYERS, *_BLOCKS),
    norm_name=_published_norms,
)

LAYOUTS = (OURS, ANYDEPTH, YOLOV12)
