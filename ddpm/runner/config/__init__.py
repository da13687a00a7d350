"""From the configuration that Hydra composed to a checked `Plan`. Without torch."""
