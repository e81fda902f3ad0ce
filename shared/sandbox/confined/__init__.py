"""The confined side of the boundary: the zygote, its children, and the layers that confine them.

This package is started with `python -s -P -S` and imports nothing outside itself and the standard library, so
that it can be loaded before any `site-packages` is visible. Start reading at `boot`.
"""
