"""The depth space of a detector that was specialised for one depth."""

from collections.abc import Iterator, Mapping, Sequence

from anydepth.depth import DepthConfig, DepthError, DepthSpace, LadderOrder


class FixedDepthSpace(DepthSpace):
    """A depth space of one depth, which reads as in the space of the original detector.

    Args:
        space: Space of the original detector.
        only: Depth of that space.

    Attributes:
        only: The depth.

    Example:
        >>> space = DepthSpace(stages=("a", "b"))
        >>> fixed = FixedDepthSpace(space, space.parse("minimal"))
        >>> str(fixed.parse("none")), str(fixed.full), [str(depth) for depth in fixed.all()]
        ('minimal', 'minimal', ['minimal'])
        >>> try: fixed.parse("full")
        ... except DepthError as error: print(str(error)[:62])
        got depth 'full', but this detector was specialised for 'minim
    """

    def __init__(self, space: DepthSpace, only: DepthConfig) -> None:
        self.only = only
        self._all = _copy_without_measurement(space)
        super().__init__(
            stages=space.stages,
            decoder_layers=space.decoder_layers,
            minimal_decoder_layers=space.minimal_decoder_layers,
        )
        self._costs = self._all._costs

    @property
    def full(self) -> DepthConfig:
        """The only depth."""
        return self.only

    @property
    def minimal(self) -> DepthConfig:
        """The only depth."""
        return self.only

    def config(self, refine: Sequence[bool], decoder_layers: int | None = None) -> DepthConfig:
        """Return the only depth, if these are its flags.

        Raises:
            DepthError: They are those of another depth.
        """
        return self._check(self._all.config(refine, decoder_layers))

    def parse(self, text: str | DepthConfig) -> DepthConfig:
        """Return the only depth, if the text names it.

        Raises:
            DepthError: It names another depth, or none.
        """
        if text == self.only.text:
            return self.only
        try:
            found = self._all.parse(text)
        except DepthError as error:
            raise DepthError(f"depth {str(text)!r}: {self.describe()}") from error
        return self._check(found)

    def all(self) -> Iterator[DepthConfig]:
        """Yield the only depth."""
        yield self.only

    def ladder(
        self, order: LadderOrder = "stage", *, measured_ap: Mapping[DepthConfig, float] | None = None
    ) -> list[DepthConfig]:
        """Return the only depth."""
        return [self.only]

    def describe(self) -> str:
        """Describe the space in one line, for error messages and help."""
        return (
            f"this detector was specialised for '{self.only}' and has no other depth: give "
            f"depth='{self.only}', or specialise the original again"
        )

    def __str__(self) -> str:
        """Return the only depth."""
        return str(self.only)

    def _check(self, found: DepthConfig) -> DepthConfig:
        if found != self.only:
            raise DepthError(f"got depth '{found}', but {self.describe()}")
        return found


def _copy_without_measurement(space: DepthSpace) -> DepthSpace:
    """Return an equal space that does not hold the detector, which measures the costs of its space."""
    copy = DepthSpace(
        stages=space.stages,
        decoder_layers=space.decoder_layers,
        minimal_decoder_layers=space.minimal_decoder_layers,
    )
    copy._costs = space._costs
    return copy
