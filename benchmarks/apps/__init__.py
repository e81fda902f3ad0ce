"""What the workers of the other systems run: no-op tasks, as a user of each library would write them."""
