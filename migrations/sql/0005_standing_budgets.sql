-- Standing budgets: see `shared/tasks/sql/standing.sql`.

CREATE TABLE standing_budgets (
    id uuid NOT NULL DEFAULT minion_uuidv7() CONSTRAINT standing_budgets_pkey PRIMARY KEY,
    scope text NOT NULL,
    namespace text NOT NULL DEFAULT '',
    name text NOT NULL DEFAULT '',
    period text NOT NULL,
    timezone text NOT NULL,
    tokens bigint,
    microdollars bigint,
    on_breach text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text,
    CONSTRAINT standing_budgets_scope_namespace_name_period_key UNIQUE (scope, namespace, name, period),
    CONSTRAINT standing_budgets_scope_check CHECK (scope IN ('installation', 'namespace', 'agent', 'key', 'model')),
    CONSTRAINT standing_budgets_names_check CHECK (
        (namespace = '') = (scope = 'installation') AND (name = '') = (scope IN ('installation', 'namespace'))),
    CONSTRAINT standing_budgets_period_check CHECK (period IN ('hour', 'day', 'month')),
    CONSTRAINT standing_budgets_on_breach_check CHECK (on_breach IN ('wait', 'fail', 'alert')),
    CONSTRAINT standing_budgets_limits_check CHECK (
        num_nonnulls(tokens, microdollars) > 0 AND COALESCE(tokens > 0, true) AND COALESCE(microdollars > 0, true))
);

CREATE TABLE standing_usage (
    budget_id uuid NOT NULL
        CONSTRAINT standing_usage_budget_id_fkey REFERENCES standing_budgets (id) ON DELETE CASCADE,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    spent_tokens bigint NOT NULL DEFAULT 0,
    spent_microdollars bigint NOT NULL DEFAULT 0,
    reserved_tokens bigint NOT NULL DEFAULT 0,
    reserved_microdollars bigint NOT NULL DEFAULT 0,
    CONSTRAINT standing_usage_pkey PRIMARY KEY (budget_id, period_start),
    CONSTRAINT standing_usage_amounts_check CHECK (
        spent_tokens >= 0 AND spent_microdollars >= 0 AND reserved_tokens >= 0 AND reserved_microdollars >= 0)
);

CREATE TABLE standing_reservations (
    task_id uuid NOT NULL CONSTRAINT standing_reservations_task_id_fkey REFERENCES tasks (id) ON DELETE CASCADE,
    step integer NOT NULL,
    claim integer NOT NULL,
    budget_id uuid NOT NULL,
    period_start timestamptz NOT NULL,
    tokens bigint NOT NULL,
    microdollars bigint NOT NULL,
    CONSTRAINT standing_reservations_pkey PRIMARY KEY (task_id, step, claim, budget_id),
    CONSTRAINT standing_reservations_usage_fkey FOREIGN KEY (budget_id, period_start)
        REFERENCES standing_usage (budget_id, period_start) ON DELETE CASCADE
);
CREATE INDEX standing_reservations_usage_idx ON standing_reservations (budget_id, period_start);

CREATE TABLE standing_alerts (
    budget_id uuid NOT NULL,
    period_start timestamptz NOT NULL,
    percent smallint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    logged_at timestamptz,
    CONSTRAINT standing_alerts_pkey PRIMARY KEY (budget_id, period_start, percent),
    CONSTRAINT standing_alerts_usage_fkey FOREIGN KEY (budget_id, period_start)
        REFERENCES standing_usage (budget_id, period_start) ON DELETE CASCADE
);
CREATE INDEX standing_alerts_unlogged_idx ON standing_alerts (created_at) WHERE logged_at IS NULL;
