-- The kill switch: see `shared/tasks/sql/stops.sql`.

CREATE TABLE stops (
    scope text NOT NULL,
    namespace text NOT NULL DEFAULT '',
    name text NOT NULL DEFAULT '',
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text,
    CONSTRAINT stops_pkey PRIMARY KEY (scope, namespace, name),
    CONSTRAINT stops_scope_check CHECK (scope IN ('installation', 'namespace', 'agent', 'key')),
    CONSTRAINT stops_names_check CHECK (
        (namespace = '') = (scope = 'installation') AND (name = '') = (scope IN ('installation', 'namespace')))
);
