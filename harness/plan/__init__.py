"""What would run, and why: pure functions of a study and its manifests. No I/O, no torch."""
