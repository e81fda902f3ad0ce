"""What the installation did and does, from committed rows: statistics, gauges, metrics, scaling."""
