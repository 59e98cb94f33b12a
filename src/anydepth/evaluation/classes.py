"""The classes of a detector in the categories of a data set."""

from collections.abc import Sequence

from anydepth.data.coco.categories import Categories
from anydepth.evaluation.coco_eval import EvaluationError
from anydepth.utils.messages import join_few

# Detections of classes that the data set does not have count neither for nor against a detector.
_NO_CATEGORY = -1


def category_ids_of(class_names: Sequence[str], categories: Categories) -> list[int]:
    """The data set's category id of each class of a detector, found by name.

    Raises:
        EvaluationError: The data set has categories that the detector does not know.
    """
    unknown = [name for name in categories.names if name not in class_names]
    if unknown:
        raise EvaluationError(
            f"{categories.source}: the detector does not know {join_few(unknown, 10)}; its classes are "
            f"{join_few(class_names, 10)}. Choose the data set that the weights were trained for"
        )
    if tuple(class_names) == categories.names:
        return list(categories.ids)
    ids = dict(zip(categories.names, categories.ids, strict=True))
    return [ids.get(name, _NO_CATEGORY) for name in class_names]
