"""What the dataclasses of options share."""

from __future__ import annotations

import dataclasses

from .errors import BadInput


class CheckedOptions:
    """Base of dataclasses whose values are checked against each other."""

    def changed(self, *names: str) -> list[str]:
        """Those of the named options that do not have their default."""
        defaults = {
            f.name: f.default_factory() if f.default is dataclasses.MISSING else f.default
            for f in dataclasses.fields(self)
        }
        return [name for name in names if getattr(self, name) != defaults[name]]

    def _require(self, name: str, holds: bool, range_: str) -> None:
        if not holds:
            raise BadInput(f"--{name} is {getattr(self, name)}; it must be {range_}")
