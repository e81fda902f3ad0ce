"""Measurements next to other systems, on the same servers in the same run. Ratios count, not seconds."""
