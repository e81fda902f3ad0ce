"""The rights that each page needs: those of the endpoints of the API whose data it shows, or whose act it does."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.api.rights import RULES as API
from orchestrator.api.rights import Rule

TASK = "/tasks/{task_id}"
SEE = API["GET /v1/tasks/{task_id}"]
CAPABILITIES = API["GET /v1/capabilities"]
ALERTS = API["GET /v1/alerts"]
AGENT = API["GET /v1/agents/{name}"]
ROUTES = API["POST /v1/routes"]
SUBMIT = API["POST /v1/tasks"]
STATS = API["GET /v1/stats"]
TOOLS = API["GET /v1/tools"]
FUNCTION = API["GET /v1/functions/{name}"]
AUDIT = API["GET /v1/audit"]

RULES: Mapping[str, Rule] = {
    "GET /overview": API["GET /v1/stats"],
    "GET /overview/live": API["GET /v1/stats"],
    "GET /tasks": API["GET /v1/tasks"],
    "GET /tasks/live": API["GET /v1/tasks"],
    f"GET {TASK}": SEE,
    f"GET {TASK}/live": API["GET /v1/tasks/{task_id}/events"],
    f"GET {TASK}/steps/{{number}}": API["GET /v1/tasks/{task_id}/steps"],
    f"GET {TASK}/conversation": API["GET /v1/tasks/{task_id}/steps"],
    f"GET {TASK}/subtasks": API["GET /v1/tasks/{task_id}/tree"],
    f"GET {TASK}/diff/{{other_id}}": API["GET /v1/tasks/{task_id}/steps"],
    f"GET {TASK}/raw/{{what}}": SEE,
    f"GET {TASK}/steps/{{number}}/raw/{{what}}": API["GET /v1/tasks/{task_id}/steps"],
    f"POST {TASK}/cancel": API["POST /v1/tasks/{task_id}/cancel"],
    f"POST {TASK}/replay": API["POST /v1/tasks/{task_id}/replay"],
    f"POST {TASK}/signal": API["POST /v1/tasks/{task_id}/signals/{name}"],
    f"POST {TASK}/budget": API["POST /v1/tasks/{task_id}/budget"],
    f"POST {TASK}/decide": API["POST /v1/tasks/{task_id}/decisions"],
    f"POST {TASK}/resume": API["DELETE /v1/pauses/{scope}/{name}"],
    "GET /inbox": API["GET /v1/tasks"],
    "GET /inbox/live": API["GET /v1/tasks"],
    "GET /inbox/{task_id}": API["GET /v1/tasks/{task_id}/why"],
    "GET /inbox/{task_id}/raw": API["GET /v1/tasks/{task_id}/why"],
    "GET /agents": API["GET /v1/agents"],
    "GET /agents/{name}": AGENT,
    "GET /agents/{name}/raw": AGENT,
    "GET /agents/{name}/try": SUBMIT,
    "POST /agents/{name}/try": SUBMIT,
    "POST /agents/{name}/rollback": API["POST /v1/agents/{name}/rollback"],
    "POST /agents/{name}/status": API["PUT /v1/agents/{name}/status"],
    "GET /routing": ROUTES,
    "POST /routing": ROUTES,
    "GET /functions": API["GET /v1/functions"],
    "GET /functions/{name}": FUNCTION,
    "GET /functions/{name}/raw": FUNCTION,
    "POST /functions/{name}/status": API["PUT /v1/functions/{name}/status"],
    "GET /tools": TOOLS,
    "GET /tools/{name}": API["GET /v1/tools/{name}"],
    "GET /tools/{name}/raw": API["GET /v1/tools/{name}"],
}
"""By method and path, as the routes have them."""
