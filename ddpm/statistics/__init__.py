"""Statistics that metrics and reports share."""
