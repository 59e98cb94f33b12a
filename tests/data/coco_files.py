"""A small data set in COCO format on disk."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CocoFiles:
    """A json, its image folder, and its content."""

    json_path: Path
    images: Path
    document: dict[str, Any]

    def rewrite(self) -> "CocoFiles":
        """Write the document again after a test has changed it."""
        self.json_path.write_text(json.dumps(self.document), encoding="utf-8")
        return self


MakeCoco = Callable[..., CocoFiles]
