"""Matching of a detector's classes with the categories of a data set."""

from collections.abc import Sequence

from anydepth.data.coco.categories import Categories
from anydepth.evaluation.coco_eval import EvaluationError
from anydepth.utils.class_names import spell_alike
from anydepth.utils.messages import join_few


def category_ids_of(class_names: Sequence[str], categories: Categories) -> list[int | None]:
    """Return the data set's category id of each class of a detector, matched by name.

    Names may differ in spelling, see :func:`~anydepth.utils.class_names.spell_alike`. Classes that the data
    set lacks get None; the evaluation ignores their detections.

    Raises:
        EvaluationError: The data set has categories that the detector was not trained for.
    """
    own, wanted = spell_alike(class_names, categories.names)
    unknown = [name for name, one in zip(categories.names, wanted, strict=True) if one not in own]
    if unknown:
        raise EvaluationError(
            f"{categories.source}: got categories {join_few(unknown, 10)}, expected classes of the detector "
            f"({join_few(class_names, 10)}); choose the data set that the weights were trained for"
        )
    ids = dict(zip(wanted, categories.ids, strict=True))
    return [ids.get(name) for name in own]
