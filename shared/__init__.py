"""What the orchestrator and the minions both know: settings, errors, the data model, definitions, the sandbox."""
