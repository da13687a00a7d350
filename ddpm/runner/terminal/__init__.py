"""What a run prints: output streams that cannot fail, commands to paste, the progress bar."""
