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
    # What operators set and look after.
    "GET /schedules": API["GET /v1/schedules"],
    "GET /schedules/{name}": API["GET /v1/schedules/{name}"],
    "GET /live/schedules": API["GET /v1/schedules"],
    "POST /schedules/create": API["POST /v1/schedules"],
    "POST /schedules/{name}/change": API["PATCH /v1/schedules/{name}"],
    "POST /schedules/{name}/run": API["POST /v1/schedules/{name}/run"],
    "POST /schedules/{name}/pause": API["PATCH /v1/schedules/{name}"],
    "POST /schedules/{name}/resume": API["PATCH /v1/schedules/{name}"],
    "POST /schedules/{name}/remove": API["DELETE /v1/schedules/{name}"],
    "GET /limits": API["GET /v1/limits"],
    "GET /limits/live": API["GET /v1/limits"],
    "POST /limits/set": API["PUT /v1/limits/{scope}/{name}"],
    "POST /limits/remove": API["DELETE /v1/limits/{scope}/{name}"],
    "POST /limits/pause": API["PUT /v1/pauses/{scope}/{name}"],
    "POST /limits/resume": API["DELETE /v1/pauses/{scope}/{name}"],
    "GET /limits/stop": API["POST /v1/stops"],
    "POST /limits/stop": API["POST /v1/stops"],
    "GET /limits/lift": API["DELETE /v1/stops"],
    "POST /limits/lift": API["DELETE /v1/stops"],
    "GET /budgets": API["GET /v1/budgets"],
    "POST /budgets/set": API["PUT /v1/budgets"],
    "POST /budgets/remove": API["DELETE /v1/budgets"],
    "GET /webhooks": API["GET /v1/webhooks"],
    "GET /webhooks/{name}": API["GET /v1/webhooks/{name}/deliveries"],
    "GET /live/webhooks": API["GET /v1/webhooks/{name}/deliveries"],
    "POST /webhooks/create": API["POST /v1/webhooks"],
    "POST /webhooks/{name}/change": API["PATCH /v1/webhooks/{name}"],
    "POST /webhooks/{name}/remove": API["DELETE /v1/webhooks/{name}"],
    "POST /webhooks/{name}/enable": API["PATCH /v1/webhooks/{name}"],
    "POST /webhooks/{name}/disable": API["PATCH /v1/webhooks/{name}"],
    "POST /webhooks/{name}/test": API["POST /v1/webhooks/{name}/test"],
    "POST /webhooks/{name}/retry": API["POST /v1/webhooks/deliveries/{delivery_id}/retry"],
    # The API has no secrets. Their names are in definitions, which this shows too.
    "GET /secrets": API["GET /v1/functions"],
    "GET /files": API["GET /v1/files"],
    "POST /files/{file_id}/delete": API["DELETE /v1/files/{file_id}"],
    "GET /memory": API["GET /v1/memory"],
    "GET /memory/{store_id}": API["GET /v1/memory/{store_id}"],
    "GET /memory/{store_id}/raw": API["GET /v1/memory/{store_id}/file"],
    "POST /memory/{store_id}/delete": API["DELETE /v1/memory/{store_id}"],
    "POST /memory/{store_id}/delete-file": API["DELETE /v1/memory/{store_id}/file"],
    "GET /keys": API["GET /v1/keys"],
    "GET /keys/{key}": API["GET /v1/keys/{key}"],
    "POST /keys/create": API["POST /v1/keys"],
    "POST /keys/{key}/rotate": API["POST /v1/keys/{key}/rotate"],
    "POST /keys/{key}/revoke": API["DELETE /v1/keys/{key}"],
    "GET /alerts": API["GET /v1/alerts"],
    "GET /alerts/live": API["GET /v1/alerts"],
    "GET /alerts/{alert_id}": API["GET /v1/alerts/{alert_id}"],
    "POST /alerts/{alert_id}/acknowledge": API["POST /v1/alerts/{alert_id}/acknowledge"],
    "GET /silences": API["GET /v1/silences"],
    "POST /silences/add": API["POST /v1/silences"],
    "POST /silences/remove": API["DELETE /v1/silences/{silence_id}"],
    "GET /audit": API["GET /v1/audit"],
    "GET /agents": API["GET /v1/agents"],
    "GET /agents/{name}": AGENT,
    "GET /agents/{name}/raw": AGENT,
    "GET /agents/{name}/try": SUBMIT,
    "POST /agents/{name}/try": SUBMIT,
    "POST /agents/{name}/rollback": API["POST /v1/agents/{name}/rollback"],
    "POST /agents/{name}/canary": API["PUT /v1/agents/{name}/canary"],
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
    "GET /errors": API["GET /v1/errors"],
    "GET /errors/live": API["GET /v1/errors"],
    f"GET {ERROR}": API["GET /v1/errors/{fingerprint}"],
    f"POST {ERROR}/decide": API["PUT /v1/errors/{fingerprint}"],
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
