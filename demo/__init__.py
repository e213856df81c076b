"""`make demo`: the whole path on one machine. `stage` sets everything up, `__main__` trains and shows what came of it."""
