"""Outside models: rows of the tables that no arm has made, read from `models/` of a results folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.store import manifests, models
from harness.store.layout import Folder

OUTSIDE = "outside"  # where its values stand in place of a run's point
BY_TOKEN = "nats_per_token"  # measures per token, which another tokenizer cuts otherwise


@dataclass(frozen=True, slots=True)
class Outside:
    """A model that a person has added to the table.

    other_tokenizer: whether its tokens are not the study's. tasks: those that it was evaluated on beside the study's,
    as plan.json writes tasks, of `suites`. model, revision: where it is.
    """

    name: str
    weights: str
    parameters: int
    other_tokenizer: bool
    tasks: tuple[Mapping[str, Any], ...]
    model: str
    revision: str | None
    suites: tuple[str, ...]

    def shows(self, measure: str) -> bool:
        """Whether a measure of its can stand in one column with the arms'."""
        return not (self.other_tokenizer and measure.startswith(BY_TOKEN))

    @property
    def note(self) -> str:
        """What the tables say beside its name."""
        size = f"{self.parameters / 1e6:.3g}M" if self.parameters < 9.995e8 else f"{self.parameters / 1e9:.3g}B"
        return f"outside model, {size} parameters" + (", another tokenizer" if self.other_tokenizer else "")


def read_outside(folder: Folder) -> tuple[tuple[Outside, ...], list[str]]:
    """The outside models of a folder in name order, and a sentence for each record that is damaged."""
    records, damage = models.read_models(folder)
    base = manifests.read_base(folder) if records else None
    of_study = None if base is None else base["tokenizer"]["identity"]
    found = tuple(
        Outside(
            name=str(record["name"]),
            weights=str(record["weights"]),
            parameters=int(record["parameters"]),
            other_tokenizer=record["tokenizer"].get("identity") != of_study,
            tasks=tuple(record["tasks"]),
            model=str(record["model"]),
            revision=record.get("revision"),
            suites=tuple(record.get("suites") or ()),
        )
        for record in records
    )
    return found, damage
