"""Devices and processes: Fabric, ranks, FSDP, signals, CPU threads, environment."""
