"""Training scripts, one a task. Nothing in the package imports this folder."""
