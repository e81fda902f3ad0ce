"""The data model. Decisions behind it:

- Ids are UUIDv7, so tables can be range-partitioned on them and sorted by age.
- Definitions are heads with immutable versions (`definitions.py`).
- Frequently changed columns are in a narrow row, separate from the constant ones and from the outcome (`tasks.py`).
- Operators' settings for running tasks are rows too (`operations.py`), so that they outlive every process.
- Money is integer micro-dollars.
- Work that has ended has the number of its transaction, so that statistics count each end once (`statistics.py`).

The functions and triggers that keep the invariants are in `shared/tasks/sql/`.
"""

from shared.database.tables.access import ApiKey, LoginSession, SqlSubmitter
from shared.database.tables.alerts import Alert, AlertNotice, AlertReceiver, AlertSilence, WatchedHour
from shared.database.tables.audit import AuditEnd, AuditRow, KeyAddress
from shared.database.tables.base import Base
from shared.database.tables.batches import BatchCall, MessageBatch
from shared.database.tables.budgets import (
    Budget,
    Reservation,
    StandingAlert,
    StandingBudget,
    StandingReservation,
    StandingUsage,
)
from shared.database.tables.bulk_acts import BulkAct, SavedView
from shared.database.tables.cached_results import CachedResult
from shared.database.tables.canaries import Canary, CanarySample, Evaluation, EvaluationScore
from shared.database.tables.conversations import ConversationSummary
from shared.database.tables.definitions import (
    Agent,
    AgentVersion,
    AgentVersionTool,
    Function,
    FunctionVersion,
    McpServer,
    McpServerVersion,
    Relation,
    SecurityEvent,
    Tool,
    ToolVersion,
)
from shared.database.tables.events import TaskEventRow
from shared.database.tables.files import ConversationFile, File, TaskFile
from shared.database.tables.memories import MemoryChange, MemoryStore, MemoryVersion
from shared.database.tables.operations import (
    ErrorState,
    LimitRow,
    Pause,
    RateHold,
    Schedule,
    Secret,
    Signal,
    Stop,
    UniqueTask,
    Webhook,
    WebhookDelivery,
)
from shared.database.tables.remote_calls import RemoteCall
from shared.database.tables.statistics import RetriedStep, Statistic, StatisticsState, TracingState
from shared.database.tables.tasks import (
    Content,
    Conversation,
    Execution,
    IdempotencyKey,
    Message,
    Step,
    TaskOutcome,
    TaskRow,
    TaskStatus,
    Worker,
)
from shared.database.tables.trials import Trial

__all__ = [
    "Agent",
    "AgentVersion",
    "AgentVersionTool",
    "Alert",
    "AlertNotice",
    "AlertReceiver",
    "AlertSilence",
    "ApiKey",
    "AuditEnd",
    "AuditRow",
    "Base",
    "BatchCall",
    "Budget",
    "BulkAct",
    "CachedResult",
    "Canary",
    "CanarySample",
    "Content",
    "Conversation",
    "ConversationFile",
    "ConversationSummary",
    "ErrorState",
    "Evaluation",
    "EvaluationScore",
    "Execution",
    "File",
    "Function",
    "FunctionVersion",
    "IdempotencyKey",
    "KeyAddress",
    "LimitRow",
    "LoginSession",
    "McpServer",
    "McpServerVersion",
    "MemoryChange",
    "MemoryStore",
    "MemoryVersion",
    "Message",
    "MessageBatch",
    "Pause",
    "RateHold",
    "Relation",
    "RemoteCall",
    "Reservation",
    "RetriedStep",
    "SavedView",
    "Schedule",
    "Secret",
    "SecurityEvent",
    "Signal",
    "SqlSubmitter",
    "StandingAlert",
    "StandingBudget",
    "StandingReservation",
    "StandingUsage",
    "Statistic",
    "StatisticsState",
    "Step",
    "Stop",
    "TaskEventRow",
    "TaskFile",
    "TaskOutcome",
    "TaskRow",
    "TaskStatus",
    "Tool",
    "ToolVersion",
    "TracingState",
    "Trial",
    "UniqueTask",
    "WatchedHour",
    "Webhook",
    "WebhookDelivery",
    "Worker",
]
