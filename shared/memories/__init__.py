"""The memory of models: files that the memory tool of the Messages API reads and writes, stored as versions."""
