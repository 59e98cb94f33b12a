"""Report of loading weights, for both detector families."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anydepth.utils.messages import join_few
from anydepth.weights.plan import Plan


@dataclass(frozen=True)
class LoadReport:
    """Result of loading weights; prints as a few lines.

    Attributes:
        layout: Name of the file's layout.
        origin: File and entry that the weights came from.
        loaded: Keys of the detector that hold the file's values.
        copied_to_skip: Keys of norms and kernels that only skipping stages use and that hold values of the
            full state, because the file has none for them.
        reinitialised: Keys that depend on the number of classes, which differs in the file: they keep their
            initial values.
        missing: Other keys of the detector that the file lacks: they keep their initial values.
        unused: Keys of the file that match no key of the detector.
        notes: Remarks to read before using the detector.
        file_classes: Number of classes of the file; None if it holds no class heads.
    """

    layout: str
    origin: str
    loaded: tuple[str, ...]
    copied_to_skip: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    file_classes: int | None = None

    @classmethod
    def from_plan(
        cls, plan: Plan, names: Mapping[str, str], origin: str, notes: Sequence[str] = ()
    ) -> "LoadReport":
        """Build the report of a plan that was applied.

        Args:
            plan: The applied plan.
            names: Keys of the file by their names in the plan.
            origin: File and entry that the weights came from.
            notes: Remarks that follow the layout's own and precede the one on skip weights.
        """
        copied = set(plan.copied)
        shown = [plan.layout.note] if plan.layout.note else []
        shown += notes
        if plan.has_classes and plan.classes.note:
            shown.append(plan.classes.note)
        if plan.copied:
            shown.append(f"{_copied_parts(plan.copied)}: train before using other depths than full")
        return cls(
            layout=plan.layout.name,
            origin=origin,
            loaded=tuple(key for key in plan.values if key not in copied),
            copied_to_skip=tuple(plan.copied),
            reinitialised=tuple(plan.class_heads),
            missing=tuple(plan.missing),
            unused=tuple(names[name] for name in plan.unused),
            notes=tuple(shown),
            file_classes=plan.file_classes,
        )

    def __str__(self) -> str:
        lines = [f"{self.origin}: weights of {self.layout}", f"  loaded: {len(self.loaded)} tensors"]
        for what, keys in (
            ("copied from the full state to the skip state", self.copied_to_skip),
            ("class heads kept as initialised", self.reinitialised),
            ("not in the file, kept as initialised", self.missing),
            ("unused in the file", self.unused),
        ):
            if keys:
                lines.append(f"  {what}: {len(keys)} ({join_few(keys, 3)})")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _copied_parts(keys: Sequence[str]) -> str:
    """Return what the weights of the skip state are copies of: norms, fusion kernels or both."""
    kernels = [".skip_conv." in key for key in keys]
    parts = [] if all(kernels) else ["skip norms have the statistics of the full state"]
    return " and ".join(
        [*parts, *(["skip fusion kernels are parts of the full ones"] if any(kernels) else [])]
    )
