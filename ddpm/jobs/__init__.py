"""One module for each file in conf/job: what a run does."""
