"""How well methods integrate and cluster single cells: ``python -m repro.integration``."""
