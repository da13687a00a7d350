"""What carries an experiment: configuration, processes, run folders, checkpoints, sweeps, reports."""
