"""The options that all import commands share, made of the fields of `ImportOptions`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from annotated_types import Ge
from pydantic.fields import FieldInfo

from retina_ray.data.importers.options import ImportOptions
from retina_ray.errors import ConfigError


def with_import_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `ImportOptions`, in place of its `options`."""
    types = get_type_hints(ImportOptions)
    fields = ImportOptions.model_fields
    own = inspect.signature(command, eval_str=True).parameters.values()
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[types[name], _option(name, field)],
        )
        for name, field in fields.items()
    ]
    parameters = [*(one for one in own if one.name != "options"), *shared]

    @wraps(command)
    def with_options(**given: Any) -> None:
        try:
            options = ImportOptions(**{name: given.pop(name) for name in fields})
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        command(**given, options=options)

    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(with_options)["__signature__"] = inspect.Signature(parameters)
    return with_options


def _option(name: str, field: FieldInfo) -> Any:
    """Typer's option of a field: its name without the unit, its docstring, its lowest value."""
    lowest: Any = next((limit.ge for limit in field.metadata if isinstance(limit, Ge)), None)
    plain = name.removesuffix("_px")
    flags = [] if plain == name else [f"--{plain.replace('_', '-')}"]
    return typer.Option(*flags, help=field.description, min=lowest)
