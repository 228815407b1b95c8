"""Every setting, in a dataclass for each stage (stages.py), and how files and flags give them (parse.py)."""
