"""What came of loading weights, for both wings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anydepth.utils.messages import join_few
from anydepth.weights.plan import Plan


@dataclass(frozen=True)
class LoadReport:
    """What came of loading weights; prints as a few lines.

    Attributes:
        layout: Whose names the weights have.
        origin: File and entry they came from.
        loaded: Keys of the detector that hold the file's values.
        copied_to_skip: Keys of norms and kernels that only skipping stages use and that hold values of the
            full path, as the file has none of their own.
        reinitialised: Keys that depend on the number of classes, which is another in the file: kept as they
            were initialised.
        missing: Other keys of the detector that the file lacks: kept as they were initialised.
        unused: Keys of the file that the detector has no place for.
        notes: What to know before using the detector.
    """

    layout: str
    origin: str
    loaded: tuple[str, ...]
    copied_to_skip: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, names: Mapping[str, str], origin: str, notes: Sequence[str] = ()) -> "LoadReport":
        """The report of a plan that was carried out.

        Args:
            plan: What was copied.
            names: Keys of the file by the names that the plan has for them.
            origin: Of the file.
            notes: What to know, after what the layout itself says and before the note on skip weights.
        """
        copied = set(plan.copied)
        shown = [plan.layout.note] if plan.layout.note else []
        shown += notes
        if plan.has_classes and plan.classes.note:
            shown.append(plan.classes.note)
        if plan.copied:
            shown.append(
                "skip norms have the statistics of the full path: train before using other depths than full"
            )
        return cls(
            layout=plan.layout.name,
            origin=origin,
            loaded=tuple(key for key in plan.values if key not in copied),
            copied_to_skip=tuple(plan.copied),
            reinitialised=tuple(plan.class_heads),
            missing=tuple(plan.missing),
            unused=tuple(names[name] for name in plan.unused),
            notes=tuple(shown),
        )

    def __str__(self) -> str:
        lines = [f"{self.origin}: weights of {self.layout}", f"  loaded: {len(self.loaded)} tensors"]
        for what, keys in (
            ("copied from the full path to the skip state", self.copied_to_skip),
            ("class heads kept as initialised", self.reinitialised),
            ("not in the file, kept as initialised", self.missing),
            ("left over in the file", self.unused),
        ):
            if keys:
                lines.append(f"  {what}: {len(keys)} ({join_few(keys, 3)})")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
