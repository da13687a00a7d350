"""A run's folder on disk: configuration, status, lock, requests, metrics log. Without torch."""
