"""Documentation of a user's own agents, tools, functions and schedules, as a folder of static pages."""
