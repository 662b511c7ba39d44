"""Entry points. Nothing below this package knows Hydra."""
