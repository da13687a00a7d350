"""A run's folder on disk: configuration, status, lock, stop file, metrics log. Without torch."""
