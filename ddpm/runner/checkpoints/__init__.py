"""The two file formats of weights: training checkpoints (.pt) and exports (.safetensors)."""
