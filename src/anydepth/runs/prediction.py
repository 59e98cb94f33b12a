"""Output folder of a prediction."""

from pathlib import Path
from typing import Any

from anydepth.results.predictions import PredictionLog, Predictions, Record, remove_results
from anydepth.runs.provenance import write_provenance


class PredictionOutput:
    """Output folder of a prediction, which is begun with the first result, so that mistakes change nothing.

    Args:
        folder: The folder.
        config: Resolved settings.
        predictions: Predictions that it writes; those of a resumed prediction are in it.
        log: Log of the prediction.
        resumed: Lines of the log that were there before.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        predictions: Predictions,
        log: PredictionLog,
        resumed: list[Record],
    ) -> None:
        self.folder = folder
        self.predictions = predictions
        self._config = config
        self._log = log
        self._resumed = resumed
        self._begun = False

    def begin(self) -> None:
        """Make the folder and open the log; results of an earlier prediction are removed, unless resumed."""
        if self._begun:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._resumed:
            remove_results(self.folder)
        # First of all, because a folder that holds it is not searched for images.
        write_provenance(self.folder, self._config)
        self._log.begin(self._resumed)
        self._begun = True

    def add(self, image_id: int, record: Record) -> None:
        """Write the detections of an image whose picture is written."""
        self._log.append(record)
        self.predictions.add(image_id, record)

    def end(self, *, complete: bool) -> None:
        """Write the results of all images so far; the log stays for a further run if any image is missing."""
        if not len(self.predictions):
            return
        self.begin()
        self.predictions.write(self.folder, complete=complete)
        self._log.close(remove=complete and not self.predictions.skipped)
