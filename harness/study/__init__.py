"""What the user writes: the study file, its schema and units, and the algebra that turns it into arms."""

from harness.study.editor import json_schema
from harness.study.errors import Mistake, StudyError, UserError, nearest
from harness.study.schema import SourceSpec, StudySpec
from harness.study.study import Study, load_study
from harness.study.treatment import (
    TRUNK_DATA_SEED,
    Arm,
    Base,
    Context,
    LearningRate,
    Optimizer,
    Rope,
    SeedSet,
    Stage,
    Treatment,
)

__all__ = [
    "TRUNK_DATA_SEED",
    "Arm",
    "Base",
    "Context",
    "LearningRate",
    "Mistake",
    "Optimizer",
    "Rope",
    "SeedSet",
    "SourceSpec",
    "Stage",
    "Study",
    "StudyError",
    "StudySpec",
    "Treatment",
    "UserError",
    "json_schema",
    "load_study",
    "nearest",
]
