"""The whole system on one machine: `minion up`."""
