"""Lossless pixels: a small net of integers tells how each value spreads, coarse pixels first."""
