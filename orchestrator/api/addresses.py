"""The address that a request comes from, and what limits by address count it for."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from fastapi import Request


def address_of(request: Request) -> str | None:
    """Return the address of the caller, or None if a proxy has reported something else in its place."""
    try:
        return str(ip_address(request.client.host)) if request.client else None
    except ValueError:
        return None


def network_of(address: str | None) -> str:
    """Return what an address is counted for: a customer of a provider has all IPv6 addresses of a /64.

    Requests without a known address are counted together.
    """
    if address is None:
        return ""
    parsed = ip_address(address)
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ip_network((parsed.packed[:8] + bytes(8), 64)))
