"""What carries an experiment: configuration, processes, run folders, sweeps, reports."""
