"""The rights that each page needs: those of the endpoints of the API whose data it shows, or whose act it does."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.api.rights import RULES as API
from orchestrator.api.rights import Rule

TASK = "/tasks/{task_id}"
SEE = API["GET /v1/tasks/{task_id}"]
CAPABILITIES = API["GET /v1/capabilities"]
ALERTS = API["GET /v1/alerts"]
PAUSES = API["GET /v1/pauses"]
SCALE = API["GET /v1/capabilities/{name}/scale"]
ERROR = "/errors/{fingerprint}"

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
    "GET /errors": API["GET /v1/errors"],
    "GET /errors/live": API["GET /v1/errors"],
    f"GET {ERROR}": API["GET /v1/errors/{fingerprint}"],
    f"POST {ERROR}/decide": API["PUT /v1/errors/{fingerprint}"],
    f"GET {ERROR}/replay": API["POST /v1/replays"],
    f"POST {ERROR}/replay": API["POST /v1/replays"],
    "GET /capabilities": CAPABILITIES,
    "GET /capabilities/live": CAPABILITIES,
    "POST /capabilities/pause": API["PUT /v1/pauses/{scope}/{name}"],
    "POST /capabilities/resume": API["DELETE /v1/pauses/{scope}/{name}"],
    "GET /workers": API["GET /v1/workers"],
    "GET /workers/live": API["GET /v1/workers"],
    "GET /analytics": API["GET /v1/stats"],
    "GET /analytics/csv": API["GET /v1/stats"],
}
"""By method and path, as the routes have them."""
