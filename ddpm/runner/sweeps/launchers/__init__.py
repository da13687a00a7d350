"""How the jobs of a sweep are started: one by one, in slots of this machine, by Slurm."""
