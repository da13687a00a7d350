"""Algorithms on a trained network: inpainting (RePaint) and interpolation."""
