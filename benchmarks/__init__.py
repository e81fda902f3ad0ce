"""Measurements beside other systems, on the same servers in the same run. Compare ratios, not seconds."""
