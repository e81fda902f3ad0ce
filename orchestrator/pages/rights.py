"""The rights that each page needs: those of the endpoints of the API whose data it shows, or whose act it does."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.api.rights import RULES as API
from orchestrator.api.rights import Rule

TASK = "/tasks/{task_id}"
SEE = API["GET /v1/tasks/{task_id}"]
CAPABILITIES = API["GET /v1/capabilities"]
ALERTS = API["GET /v1/alerts"]

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
    f"GET {TASK}/graph": API["GET /v1/tasks/{task_id}/tree"],
    f"GET {TASK}/diff/{{other_id}}": API["GET /v1/tasks/{task_id}/steps"],
    f"GET {TASK}/raw/{{what}}": SEE,
    f"GET {TASK}/steps/{{number}}/raw/{{what}}": API["GET /v1/tasks/{task_id}/steps"],
    f"POST {TASK}/cancel": API["POST /v1/tasks/{task_id}/cancel"],
    f"POST {TASK}/replay": API["POST /v1/tasks/{task_id}/replay"],
    f"POST {TASK}/signal": API["POST /v1/tasks/{task_id}/signals/{name}"],
    f"POST {TASK}/budget": API["POST /v1/tasks/{task_id}/budget"],
    f"POST {TASK}/decide": API["POST /v1/tasks/{task_id}/decisions"],
    f"POST {TASK}/resume": API["DELETE /v1/pauses/{scope}/{name}"],
    "GET /bulk-acts": API["GET /v1/bulk-acts"],
    "GET /bulk-acts/live": API["GET /v1/bulk-acts"],
    "GET /bulk-acts/new": API["GET /v1/tasks"],
    "POST /bulk-acts/start": API["POST /v1/bulk-acts"],
    "GET /bulk-acts/{bulk_act_id}": API["GET /v1/bulk-acts/{bulk_act_id}"],
    "POST /bulk-acts/{bulk_act_id}/stop": API["POST /v1/bulk-acts/{bulk_act_id}/stop"],
    "GET /palette": API["GET /v1/tasks"],
    "POST /tasks/save-view": API["GET /v1/tasks"],
    "POST /tasks/delete-view": API["GET /v1/tasks"],
    "GET /inbox": API["GET /v1/tasks"],
    "GET /inbox/live": API["GET /v1/tasks"],
    "GET /inbox/{task_id}": API["GET /v1/tasks/{task_id}/why"],
    "GET /inbox/{task_id}/raw": API["GET /v1/tasks/{task_id}/why"],
}
"""By method and path, as the routes have them."""
