"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# Hypothesis fails an example that takes 200 ms, which says something of the machine and nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
