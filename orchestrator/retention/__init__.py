"""How long finished tasks are kept, and how they are exported before they go."""
