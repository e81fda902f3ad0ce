"""The Model Context Protocol as a client: sessions, transports, the tools that a server lists, results of calls."""
