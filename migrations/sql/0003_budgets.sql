-- Budgets: see `shared/tasks/sql/budgets.sql`.

ALTER TABLE tasks ADD COLUMN budget_ids uuid[];

CREATE TABLE budgets (
    task_id uuid NOT NULL CONSTRAINT budgets_pkey PRIMARY KEY
        CONSTRAINT budgets_task_id_fkey REFERENCES tasks (id) ON DELETE CASCADE,
    tokens bigint,
    microdollars bigint,
    steps bigint,
    seconds double precision,
    on_breach text NOT NULL,
    spent_tokens bigint NOT NULL DEFAULT 0,
    spent_microdollars bigint NOT NULL DEFAULT 0,
    spent_steps bigint NOT NULL DEFAULT 0,
    due_at timestamptz,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT budgets_on_breach_check CHECK (on_breach IN ('ask', 'fail')),
    CONSTRAINT budgets_limits_check CHECK (
        num_nonnulls(tokens, microdollars, steps, seconds) > 0
        AND COALESCE(tokens > 0, true) AND COALESCE(microdollars > 0, true)
        AND COALESCE(steps > 0, true) AND COALESCE(seconds > 0, true)),
    CONSTRAINT budgets_spent_check CHECK (spent_tokens >= 0 AND spent_microdollars >= 0 AND spent_steps >= 0)
);
CREATE INDEX budgets_due_idx ON budgets (due_at) WHERE due_at IS NOT NULL AND on_breach = 'fail';

CREATE TABLE reservations (
    task_id uuid NOT NULL CONSTRAINT reservations_task_id_fkey REFERENCES tasks (id) ON DELETE CASCADE,
    step integer NOT NULL,
    claim integer NOT NULL,
    budget_task_id uuid NOT NULL
        CONSTRAINT reservations_budget_task_id_fkey REFERENCES budgets (task_id) ON DELETE CASCADE,
    tokens bigint NOT NULL,
    microdollars bigint NOT NULL,
    steps integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    CONSTRAINT reservations_pkey PRIMARY KEY (task_id, step, claim, budget_task_id)
);
CREATE INDEX reservations_budget_idx ON reservations (budget_task_id, settled_at);

CREATE INDEX task_status_budget_idx ON task_status (task_id) WHERE wait_reason = 'budget';
