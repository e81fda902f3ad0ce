"""Measurements beside other systems, on the same servers in the same run. Ratios count, not seconds."""
