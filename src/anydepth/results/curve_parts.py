"""Parts of a depth curve stored in a folder, so that a long evaluation can be resumed."""

import json
from collections.abc import Mapping
from pathlib import Path

from anydepth.evaluation.coco_eval import EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.utils.files import write_text

_FINGERPRINT = "fingerprint.json"


class CurveParts:
    """Parts of one evaluation, each in a file that is complete or absent.

    Args:
        folder: Folder of the parts; created with the first one.
        fingerprint: Everything that affects the result, by name, e.g. ``weights`` and ``data``.

    Raises:
        EvaluationError: The folder holds parts of an evaluation with another fingerprint.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.fingerprint = dict(fingerprint)
        path = self.folder / _FINGERPRINT
        if path.is_file():
            self._check(path)

    def load(self) -> list[DepthCurve]:
        """Read all stored parts.

        Raises:
            EvaluationError: A file is damaged; the message names it.
        """
        parts = []
        for path in self._paths():
            try:
                parts.append(DepthCurve.from_json(path.read_text(encoding="utf-8")))
            except (EvaluationError, UnicodeDecodeError) as error:
                raise EvaluationError(f"{path}: {error}; delete it to evaluate its depths again") from error
        return parts

    def add(self, part: DepthCurve) -> None:
        """Write a further part."""
        write_text(self.folder / _FINGERPRINT, json.dumps(self.fingerprint, indent=2) + "\n")
        number = max((int(path.stem) for path in self._paths()), default=0) + 1
        write_text(self.folder / f"{number:04}.json", part.to_json())

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*.json") if path.stem.isdecimal())

    def _check(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            differing = sorted(
                name
                for name in stored.keys() | self.fingerprint.keys()
                if stored.get(name) != self.fingerprint.get(name)
            )
        except (AttributeError, ValueError) as error:
            raise EvaluationError(
                f"{path}: damaged ({error!r}); delete {self.folder} to start again"
            ) from error
        if differing:
            raise EvaluationError(
                f"{self.folder} holds an evaluation that differs in {', '.join(differing)}; choose another "
                f"output=FOLDER for this one, or delete {self.folder} to start again"
            )
