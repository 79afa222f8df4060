"""The faults, one file each; `none.py` is the one to copy."""
