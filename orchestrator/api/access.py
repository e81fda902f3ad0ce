"""The terms of a request's key over HTTP, so that a program offers only what its key may do."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from orchestrator.api.auth import Caller
from shared.settings import Settings
from shared.tasks.states import FINAL, State

router = APIRouter(prefix="/v1/access", tags=["keys"])


class Access(BaseModel):
    """The rights of a key or login, and how long its tasks are kept."""

    name: str
    role: str
    permissions: list[str]
    namespace: str | None = Field(description="The namespace that it is bound to; null: all.")
    scope: str = Field(description="What it reaches, for people.", examples=["the namespace team"])
    whole_namespace: bool = Field(
        description="False: it is bound to agents, capabilities or a tenant, and some operations are refused."
    )
    retention_days: dict[State, float] = Field(
        description="Days for which tasks are kept after their end, by final state; 0: indefinitely."
    )


@router.get("", response_model=Access)
async def get_access(request: Request, key: Caller) -> dict[str, Any]:
    """The rights of the request's key, and how long its tasks are kept."""
    settings: Settings = request.app.state.settings
    return {
        "name": key.name,
        "role": str(key.role),
        "permissions": sorted(key.permissions),
        "namespace": key.scope.namespace,
        "scope": key.scope.description,
        "whole_namespace": not key.scope.is_partial,
        "retention_days": {state: getattr(settings, f"retention_{state}") for state in sorted(FINAL)},
    }
