"""Reproduce the paper: its tables and figures, as runs that can be stopped, continued and shared.

It runs from a checkout (``pip install -e .``) and is not in the wheel; see ``scripts/reproduce.py``.
"""
