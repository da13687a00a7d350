"""What the W&B tracker and `checkpoint=wandb:...` are made of. Imports wandb when it is needed."""
