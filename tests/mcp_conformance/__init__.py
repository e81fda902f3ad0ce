"""The official conformance suite of the Model Context Protocol against this product. See docs/mcp-server.md."""
