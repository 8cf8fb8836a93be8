"""What all sections of the config share: strict types, `Section`, and what is read when.

Units stand in the name of a setting (`_px`, `_s`, `_steps`, `_epochs`) or in its description.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retina_ray.errors import ConfigError
from retina_ray.overrides import faults_of

# Strict: true is no 1, "3" is no 3 and 2.0 is no 2. Taken still: an int for a float, a list for a
# tuple, as JSON has them.
Bool = Annotated[bool, Field(strict=True)]
Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[Float, Field(gt=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
BelowOne = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[Int, Field(ge=1)]
Pixels = Annotated[Int, Field(ge=1)]
NotEmpty = Field(min_length=1)
Seed = Annotated[Int, Field(ge=0, lt=2**63)]


class ReadWhen:
    """Stands beside a setting that another one switches off; a setting without it is always read.

        smooth_l1_beta: Annotated[NonNegative, ReadWhen("loss.box_loss", "smooth_l1")] = 0.1

    Where several stand beside a setting, it is read if any of them holds.
    """

    def __init__(self, path: str | None, *values: Any) -> None:
        """Say when the setting is read.

        Args:
            path: dotted path of the other setting; None: whatever is built, nothing reads it.
            values: for which values of it; none given: for all but null, false and 0.
        """
        self.path = path
        self.values = values

    def holds(self, config: Any) -> bool:
        """Whether the setting is read in this `ExperimentConfig`."""
        if self.path is None:
            return False
        value = attrgetter(self.path)(config)
        return value in self.values if self.values else bool(value)


OPERATIONAL = ReadWhen(None)
"""Beside what only decides how a run is watched, computed or kept alive: it changes no result, up
to rounding and the moment of death."""


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    if not TYPE_CHECKING:  # type checkers keep the signature with a keyword for each setting

        def __init__(self, **settings: Any) -> None:
            """Take each setting by keyword.

            Raises:
                ConfigError: all faults at once, instead of pydantic's ValidationError.
            """
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError(faults_of(error, type(self))) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy with some settings replaced; unlike pydantic's own, the copy is checked.

        Raises:
            ConfigError: all faults at once.
        """
        del deep  # a frozen value has nothing to share by accident
        return type(self)(**{**dict(self), **(update or {})})
