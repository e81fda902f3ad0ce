"""The MCP server: agents as tools, over HTTP at /mcp and over standard input and output."""
