"""hydra/sweeper=optuna: the jobs are trials of an Optuna study."""
