"""What crosses a border, and its rules: strict JSON, JSON Schema."""
