"""Pages for people: what an operator looks at, rendered by the server. They show and do what the API does."""
