"""Entropy models: integer codes <-> bytes, exactly."""
