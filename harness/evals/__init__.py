"""Evaluation of a state's exported model folder: lm-eval tasks and held-out bits per byte.

Importing this package is cheap: lm-eval, torch and transformers are imported by the functions that need them.
"""

from harness.evals.evaluate import EvaluationFailed, evaluate_model, evaluate_state
from harness.evals.settings import EvalSettings, EvalTask
from harness.evals.suites import Suite, load_suite, resolve_tasks, suite_names

__all__ = [
    "EvalSettings",
    "EvalTask",
    "EvaluationFailed",
    "Suite",
    "evaluate_model",
    "evaluate_state",
    "load_suite",
    "resolve_tasks",
    "suite_names",
]
