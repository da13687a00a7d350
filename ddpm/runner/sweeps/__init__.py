"""Many runs of one command: their folders, how they are started, and their results."""
