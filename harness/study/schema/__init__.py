"""The study file as a user writes it: one strict model per block.

Everything is optional that may come from `train`, from an include or from an arm's change; what must be there after
all that is checked where the stages are resolved. Values keep their units here (`TokenCount`, `Rate`); resolved
numbers are in `treatment.py`. `None` means "not written": whether `null` may be written is `NULLABLE`.
"""

from harness.study.schema.ablation import KINDS as ITEM_KINDS
from harness.study.schema.ablation import MixtureAxis, SeedsSpec
from harness.study.schema.base import SourceSpec
from harness.study.schema.controls import ControlSpec, ReproduceSpec
from harness.study.schema.evaluation import CompareSpec, EvalSpec, HeldOutSpec
from harness.study.schema.merge import MergeSpec
from harness.study.schema.scalars import NULLABLE
from harness.study.schema.study import ArmSpec, StudySpec, description_of

__all__ = [
    "ITEM_KINDS",
    "NULLABLE",
    "ArmSpec",
    "CompareSpec",
    "ControlSpec",
    "EvalSpec",
    "HeldOutSpec",
    "MergeSpec",
    "MixtureAxis",
    "ReproduceSpec",
    "SeedsSpec",
    "SourceSpec",
    "StudySpec",
    "description_of",
]
