"""What stands behind the lines of `main.py`."""
