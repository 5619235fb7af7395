"""The `slurm` executor: Slurm runs the work, Submitit talks to it, and a tick brings one to what the study asks for."""
