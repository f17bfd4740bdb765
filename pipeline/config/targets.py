"""The labels of a data set, by kind; a kind's own settings stand in its file in `pipeline.targets`."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class TargetConfig(Section):
    """What every kind has."""

    member: str | None = Field(default=None, description="extension of the member; default: the index's")
