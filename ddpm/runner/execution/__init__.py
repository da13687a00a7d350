"""From a `Plan` to running processes, a `Run` for the job, and the printed outcome."""
