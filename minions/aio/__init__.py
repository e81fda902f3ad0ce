"""The client for asyncio: `from minions import AsyncClient`.

It is also the source of the client for threads, which `make client` derives from it.
"""
