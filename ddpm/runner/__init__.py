"""The machinery of experiments: configuration, processes, run folders, sweeps, reports."""
