"""The paper's tables and figures as runs that can be stopped, continued and shared; see ``scripts/reproduce.py``."""
