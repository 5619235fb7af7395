"""The harness's own lm-eval tasks: YAML beside local data, usable as `lm_eval --include_path harness/evals/tasks`."""
