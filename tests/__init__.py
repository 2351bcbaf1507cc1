"""The tests mirror the package. (A package of their own: some distributions install a top-level `tests` too.)"""
