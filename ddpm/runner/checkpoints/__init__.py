"""The file formats of weights: checkpoints (.pt), exports (.safetensors), diffusers' pipelines."""
