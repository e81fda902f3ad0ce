"""The audit log: one signed row for each act, in the transaction of the act. See `docs/audit.md`."""
