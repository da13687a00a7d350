"""The W&B client: sessions, history, artifacts. wandb is imported when it is needed."""
