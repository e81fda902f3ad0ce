-- The schema of a fresh database, to read: tables with their constraints, indexes and triggers, then the functions.
-- `make schema` generates this file with pg_dump; `minion migrate` does not use it. On servers before PostgreSQL 18
-- minion_uuidv7() is as in shared/tasks/sql/foundation.sql.

CREATE TABLE agent_version_tools (
    agent_version_id uuid NOT NULL,
    "position" smallint NOT NULL,
    tool_version_id uuid NOT NULL
);
ALTER TABLE ONLY agent_version_tools
    ADD CONSTRAINT agent_version_tools_pkey PRIMARY KEY (agent_version_id, "position");
CREATE TRIGGER agent_version_tools_immutable BEFORE UPDATE ON agent_version_tools FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY agent_version_tools
    ADD CONSTRAINT agent_version_tools_agent_version_id_fkey FOREIGN KEY (agent_version_id) REFERENCES agent_versions(id) ON DELETE CASCADE;
ALTER TABLE ONLY agent_version_tools
    ADD CONSTRAINT agent_version_tools_tool_version_id_fkey FOREIGN KEY (tool_version_id) REFERENCES tool_versions(id);

CREATE TABLE agent_versions (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    agent_id uuid NOT NULL,
    number integer NOT NULL,
    checksum text NOT NULL,
    type text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    capabilities text[] NOT NULL,
    capability text NOT NULL,
    input_schema jsonb,
    definition jsonb NOT NULL,
    function_version_id uuid,
    tool_version_id uuid,
    soft_time_limit integer NOT NULL,
    time_limit integer NOT NULL,
    max_attempts integer NOT NULL,
    search tsvector GENERATED ALWAYS AS (minion_search_text(name, description, capabilities)) STORED NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    key_order jsonb,
    evaluators jsonb,
    CONSTRAINT agent_versions_type_check CHECK ((type = ANY (ARRAY['agent'::text, 'function'::text])))
);
ALTER TABLE ONLY agent_versions
    ADD CONSTRAINT agent_versions_agent_id_number_key UNIQUE (agent_id, number);
ALTER TABLE ONLY agent_versions
    ADD CONSTRAINT agent_versions_pkey PRIMARY KEY (id);
CREATE INDEX agent_versions_capabilities_idx ON agent_versions USING gin (capabilities);
CREATE UNIQUE INDEX agent_versions_content_idx ON agent_versions USING btree (agent_id, checksum, md5(COALESCE((key_order)::text, ''::text)));
CREATE INDEX agent_versions_evaluators_idx ON agent_versions USING btree (id) WHERE (evaluators IS NOT NULL);
CREATE INDEX agent_versions_search_idx ON agent_versions USING gin (search);
CREATE TRIGGER agent_versions_immutable BEFORE UPDATE ON agent_versions FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY agent_versions
    ADD CONSTRAINT agent_versions_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents(id) ON DELETE CASCADE;
ALTER TABLE ONLY agent_versions
    ADD CONSTRAINT agent_versions_function_version_id_fkey FOREIGN KEY (function_version_id) REFERENCES function_versions(id);
ALTER TABLE ONLY agent_versions
    ADD CONSTRAINT agent_versions_tool_version_id_fkey FOREIGN KEY (tool_version_id) REFERENCES tool_versions(id);

CREATE TABLE agents (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    status_reason text,
    active_version_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT agents_status_check CHECK ((status = ANY (ARRAY['active'::text, 'deprecated'::text, 'disabled'::text, 'rolled_back'::text])))
);
ALTER TABLE ONLY agents
    ADD CONSTRAINT agents_namespace_name_key UNIQUE (namespace, name);
ALTER TABLE ONLY agents
    ADD CONSTRAINT agents_pkey PRIMARY KEY (id);
ALTER TABLE ONLY agents
    ADD CONSTRAINT agents_active_version_id_fkey FOREIGN KEY (active_version_id) REFERENCES agent_versions(id);

CREATE TABLE alembic_version (
    version_num character varying(32) NOT NULL
);
ALTER TABLE ONLY alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

CREATE TABLE alert_notices (
    alert_id uuid NOT NULL,
    receiver text NOT NULL,
    state text NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY alert_notices
    ADD CONSTRAINT alert_notices_pkey PRIMARY KEY (alert_id, receiver);
CREATE INDEX alert_notices_receiver_idx ON alert_notices USING btree (receiver, at);
ALTER TABLE ONLY alert_notices
    ADD CONSTRAINT alert_notices_alert_id_fkey FOREIGN KEY (alert_id) REFERENCES alerts(id) ON DELETE CASCADE;
ALTER TABLE ONLY alert_notices
    ADD CONSTRAINT alert_notices_receiver_fkey FOREIGN KEY (receiver) REFERENCES alert_receivers(name) ON DELETE CASCADE;

CREATE TABLE alert_receivers (
    name text NOT NULL,
    webhook_id uuid,
    attempts integer DEFAULT 0 NOT NULL,
    next_at timestamp with time zone DEFAULT now() NOT NULL,
    last_error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    used_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY alert_receivers
    ADD CONSTRAINT alert_receivers_pkey PRIMARY KEY (name);
CREATE INDEX alert_receivers_webhook_id_idx ON alert_receivers USING btree (webhook_id);
ALTER TABLE ONLY alert_receivers
    ADD CONSTRAINT alert_receivers_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES webhooks(id) ON DELETE CASCADE;

CREATE TABLE alert_silences (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text,
    rule text,
    agent text,
    capability text,
    subject text,
    until_at timestamp with time zone NOT NULL,
    reason text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    created_by text NOT NULL,
    CONSTRAINT alert_silences_matcher_check CHECK ((num_nonnulls(rule, agent, capability, subject) > 0))
);
ALTER TABLE ONLY alert_silences
    ADD CONSTRAINT alert_silences_pkey PRIMARY KEY (id);

CREATE TABLE alerts (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    rule text NOT NULL,
    namespace text,
    subject text NOT NULL,
    agent text,
    capability text,
    state text DEFAULT 'firing'::text NOT NULL,
    sentence text NOT NULL,
    value double precision,
    usual double precision,
    low double precision,
    high double precision,
    unit text,
    facts jsonb DEFAULT '{}'::jsonb NOT NULL,
    first_seen timestamp with time zone DEFAULT now() NOT NULL,
    last_seen timestamp with time zone DEFAULT now() NOT NULL,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    resolved_at timestamp with time zone,
    acknowledged_at timestamp with time zone,
    acknowledged_by text,
    CONSTRAINT alerts_resolved_check CHECK (((state = 'resolved'::text) = (resolved_at IS NOT NULL))),
    CONSTRAINT alerts_state_check CHECK ((state = ANY (ARRAY['firing'::text, 'acknowledged'::text, 'silenced'::text, 'resolved'::text])))
);
ALTER TABLE ONLY alerts
    ADD CONSTRAINT alerts_pkey PRIMARY KEY (id);
CREATE INDEX alerts_changed_at_idx ON alerts USING btree (changed_at);
CREATE INDEX alerts_namespace_idx ON alerts USING btree (namespace, id);
CREATE UNIQUE INDEX alerts_open_idx ON alerts USING btree (rule, COALESCE(namespace, ''::text), subject) WHERE (state <> 'resolved'::text);

CREATE TABLE api_keys (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    name text NOT NULL,
    prefix text NOT NULL,
    hash bytea NOT NULL,
    role text NOT NULL,
    payloads boolean NOT NULL,
    namespace text,
    agents text[] DEFAULT '{}'::text[] NOT NULL,
    capabilities text[] DEFAULT '{}'::text[] NOT NULL,
    tenant text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    created_by text NOT NULL,
    expires_at timestamp with time zone,
    last_used_at timestamp with time zone,
    rotated_at timestamp with time zone,
    rotated_by text,
    previous_hash bytea,
    previous_prefix text,
    previous_until timestamp with time zone,
    previous_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    revoked_by text,
    requests_per_minute integer,
    CONSTRAINT api_keys_hash_check CHECK (((octet_length(hash) = 32) AND (octet_length(previous_hash) = 32))),
    CONSTRAINT api_keys_previous_check CHECK ((num_nulls(previous_hash, previous_prefix, previous_until) = ANY (ARRAY[0, 3]))),
    CONSTRAINT api_keys_requests_per_minute_check CHECK ((requests_per_minute > 0)),
    CONSTRAINT api_keys_role_check CHECK ((role = ANY (ARRAY['viewer'::text, 'submitter'::text, 'operator'::text, 'approver'::text, 'author'::text, 'admin'::text])))
);
ALTER TABLE ONLY api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX api_keys_hash_idx ON api_keys USING btree (hash);
CREATE UNIQUE INDEX api_keys_name_idx ON api_keys USING btree (COALESCE(namespace, ''::text), name) WHERE (revoked_at IS NULL);
CREATE UNIQUE INDEX api_keys_previous_hash_idx ON api_keys USING btree (previous_hash) WHERE (previous_hash IS NOT NULL);

CREATE TABLE audit_ends (
    name text NOT NULL,
    "position" bigint NOT NULL,
    hash bytea NOT NULL,
    signature bytea NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT audit_ends_name_check CHECK ((name = ANY (ARRAY['start'::text, 'head'::text])))
);
ALTER TABLE ONLY audit_ends
    ADD CONSTRAINT audit_ends_pkey PRIMARY KEY (name);
CREATE TRIGGER audit_ends_not_emptied BEFORE DELETE OR TRUNCATE ON audit_ends FOR EACH STATEMENT EXECUTE FUNCTION minion_keep_audit();

CREATE TABLE audit_log (
    id bigint NOT NULL,
    nonce uuid NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    act text NOT NULL,
    actor text NOT NULL,
    key_prefix text,
    claimed text,
    address text,
    request_id text,
    namespace text,
    target text,
    before json,
    after json,
    signature bytea,
    "position" bigint,
    hash bytea,
    CONSTRAINT audit_log_hash_check CHECK (((octet_length(hash) = 32) AND (octet_length(signature) = 32))),
    CONSTRAINT audit_log_place_check CHECK ((num_nulls("position", hash) = ANY (ARRAY[0, 2])))
);
ALTER TABLE audit_log ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME audit_log_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE ONLY audit_log
    ADD CONSTRAINT audit_log_nonce_key UNIQUE (nonce);
ALTER TABLE ONLY audit_log
    ADD CONSTRAINT audit_log_pkey PRIMARY KEY (id);
ALTER TABLE ONLY audit_log
    ADD CONSTRAINT audit_log_position_key UNIQUE ("position");
CREATE INDEX audit_log_act_idx ON audit_log USING btree (act, at);
CREATE INDEX audit_log_namespace_idx ON audit_log USING btree (namespace, id);
CREATE INDEX audit_log_target_idx ON audit_log USING btree (target, id);
CREATE INDEX audit_log_unsealed_idx ON audit_log USING btree (id) WHERE ("position" IS NULL);
CREATE TRIGGER audit_log_kept BEFORE DELETE OR UPDATE ON audit_log FOR EACH ROW EXECUTE FUNCTION minion_keep_audit_row();
CREATE TRIGGER audit_log_not_emptied BEFORE TRUNCATE ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION minion_keep_audit();

CREATE TABLE batch_calls (
    task_id uuid NOT NULL,
    step integer NOT NULL,
    claim integer NOT NULL,
    attempt smallint DEFAULT '1'::smallint NOT NULL,
    custom_id text NOT NULL,
    model text NOT NULL,
    body text,
    bytes integer NOT NULL,
    batch uuid,
    together integer,
    result text,
    usage jsonb,
    error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    answered_at timestamp with time zone,
    CONSTRAINT batch_calls_body_check CHECK (((result IS NOT NULL) OR (body IS NOT NULL)))
);
ALTER TABLE ONLY batch_calls
    ADD CONSTRAINT batch_calls_custom_id_key UNIQUE (custom_id);
ALTER TABLE ONLY batch_calls
    ADD CONSTRAINT batch_calls_pkey PRIMARY KEY (task_id, step);
CREATE INDEX batch_calls_answered_idx ON batch_calls USING btree (task_id) WHERE (result IS NOT NULL);
CREATE INDEX batch_calls_batch_idx ON batch_calls USING btree (batch) WHERE (batch IS NOT NULL);
CREATE INDEX batch_calls_unsent_idx ON batch_calls USING btree (created_at) WHERE ((batch IS NULL) AND (result IS NULL));
ALTER TABLE ONLY batch_calls
    ADD CONSTRAINT batch_calls_batch_fkey FOREIGN KEY (batch) REFERENCES message_batches(id) ON DELETE SET NULL;
ALTER TABLE ONLY batch_calls
    ADD CONSTRAINT batch_calls_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE budgets (
    task_id uuid NOT NULL,
    tokens bigint,
    microdollars bigint,
    steps bigint,
    seconds double precision,
    on_breach text NOT NULL,
    spent_tokens bigint DEFAULT 0 NOT NULL,
    spent_microdollars bigint DEFAULT 0 NOT NULL,
    spent_steps bigint DEFAULT 0 NOT NULL,
    due_at timestamp with time zone,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT budgets_limits_check CHECK (((num_nonnulls(tokens, microdollars, steps, seconds) > 0) AND COALESCE((tokens > 0), true) AND COALESCE((microdollars > 0), true) AND COALESCE((steps > 0), true) AND COALESCE((seconds > (0)::double precision), true))),
    CONSTRAINT budgets_on_breach_check CHECK ((on_breach = ANY (ARRAY['ask'::text, 'fail'::text]))),
    CONSTRAINT budgets_spent_check CHECK (((spent_tokens >= 0) AND (spent_microdollars >= 0) AND (spent_steps >= 0)))
);
ALTER TABLE ONLY budgets
    ADD CONSTRAINT budgets_pkey PRIMARY KEY (task_id);
CREATE INDEX budgets_due_idx ON budgets USING btree (due_at) WHERE ((due_at IS NOT NULL) AND (on_breach = 'fail'::text));
ALTER TABLE ONLY budgets
    ADD CONSTRAINT budgets_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE bulk_acts (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text NOT NULL,
    act text NOT NULL,
    query text NOT NULL,
    chosen jsonb NOT NULL,
    options jsonb NOT NULL,
    rate double precision NOT NULL,
    state text DEFAULT 'running'::text NOT NULL,
    matched bigint NOT NULL,
    more boolean NOT NULL,
    done bigint DEFAULT '0'::bigint NOT NULL,
    failed bigint DEFAULT '0'::bigint NOT NULL,
    skipped bigint DEFAULT '0'::bigint NOT NULL,
    failures jsonb DEFAULT '[]'::jsonb NOT NULL,
    cursor uuid,
    next_at timestamp with time zone DEFAULT now() NOT NULL,
    key_id uuid,
    maker jsonb NOT NULL,
    created_by text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    stopped_by text,
    CONSTRAINT bulk_acts_act_check CHECK ((act = ANY (ARRAY['cancel'::text, 'replay'::text, 'label'::text]))),
    CONSTRAINT bulk_acts_ended_check CHECK (((state = 'running'::text) = (ended_at IS NULL))),
    CONSTRAINT bulk_acts_rate_check CHECK ((rate > (0)::double precision)),
    CONSTRAINT bulk_acts_state_check CHECK ((state = ANY (ARRAY['running'::text, 'stopped'::text, 'done'::text]))),
    CONSTRAINT bulk_acts_stopped_check CHECK (((state = 'stopped'::text) = (stopped_by IS NOT NULL)))
);
ALTER TABLE ONLY bulk_acts
    ADD CONSTRAINT bulk_acts_pkey PRIMARY KEY (id);
CREATE INDEX bulk_acts_namespace_idx ON bulk_acts USING btree (namespace, id);
CREATE INDEX bulk_acts_running_idx ON bulk_acts USING btree (id) WHERE (state = 'running'::text);

CREATE TABLE cached_results (
    key text NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    function_version_id uuid,
    output jsonb NOT NULL,
    output_order jsonb,
    bytes integer NOT NULL,
    task_id uuid NOT NULL,
    step integer NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL
);
ALTER TABLE ONLY cached_results
    ADD CONSTRAINT cached_results_pkey PRIMARY KEY (key);
CREATE INDEX cached_results_expires_idx ON cached_results USING btree (expires_at) INCLUDE (bytes);
CREATE INDEX cached_results_task_id_idx ON cached_results USING btree (task_id);
ALTER TABLE ONLY cached_results
    ADD CONSTRAINT cached_results_function_version_id_fkey FOREIGN KEY (function_version_id) REFERENCES function_versions(id);
ALTER TABLE ONLY cached_results
    ADD CONSTRAINT cached_results_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE canaries (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    agent_id uuid NOT NULL,
    version_id uuid NOT NULL,
    baseline_id uuid NOT NULL,
    share integer NOT NULL,
    max_failures double precision NOT NULL,
    max_cost double precision NOT NULL,
    max_score_drop double precision NOT NULL,
    min_tasks integer NOT NULL,
    looks jsonb DEFAULT '{}'::jsonb NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    outcome text,
    reason text,
    CONSTRAINT canaries_ended_check CHECK (((ended_at IS NULL) = (outcome IS NULL))),
    CONSTRAINT canaries_outcome_check CHECK ((outcome = ANY (ARRAY['completed'::text, 'rolled_back'::text, 'ended'::text, 'changed'::text]))),
    CONSTRAINT canaries_share_check CHECK (((share >= 1) AND (share <= 9999))),
    CONSTRAINT canaries_versions_check CHECK ((version_id <> baseline_id))
);
ALTER TABLE ONLY canaries
    ADD CONSTRAINT canaries_pkey PRIMARY KEY (id);
CREATE INDEX canaries_agent_idx ON canaries USING btree (agent_id, id);
CREATE INDEX canaries_baseline_idx ON canaries USING btree (baseline_id) WHERE (ended_at IS NULL);
CREATE UNIQUE INDEX canaries_open_idx ON canaries USING btree (agent_id) WHERE (ended_at IS NULL);
ALTER TABLE ONLY canaries
    ADD CONSTRAINT canaries_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents(id) ON DELETE CASCADE;
ALTER TABLE ONLY canaries
    ADD CONSTRAINT canaries_baseline_id_fkey FOREIGN KEY (baseline_id) REFERENCES agent_versions(id) ON DELETE CASCADE;
ALTER TABLE ONLY canaries
    ADD CONSTRAINT canaries_version_id_fkey FOREIGN KEY (version_id) REFERENCES agent_versions(id) ON DELETE CASCADE;

CREATE TABLE canary_samples (
    canary_id uuid NOT NULL,
    of_canary boolean NOT NULL,
    measure text NOT NULL,
    count bigint DEFAULT 0 NOT NULL,
    sum double precision DEFAULT 0 NOT NULL,
    squares double precision DEFAULT 0 NOT NULL
);
ALTER TABLE ONLY canary_samples
    ADD CONSTRAINT canary_samples_pkey PRIMARY KEY (canary_id, of_canary, measure);
ALTER TABLE ONLY canary_samples
    ADD CONSTRAINT canary_samples_canary_id_fkey FOREIGN KEY (canary_id) REFERENCES canaries(id) ON DELETE CASCADE;

CREATE TABLE contents (
    sha256 text NOT NULL,
    value jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY contents
    ADD CONSTRAINT contents_pkey PRIMARY KEY (sha256);
CREATE TRIGGER contents_immutable BEFORE UPDATE ON contents FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();

CREATE TABLE conversation_files (
    namespace text NOT NULL,
    conversation_id text NOT NULL,
    file_id text NOT NULL
);
ALTER TABLE ONLY conversation_files
    ADD CONSTRAINT conversation_files_pkey PRIMARY KEY (namespace, conversation_id, file_id);
CREATE INDEX conversation_files_file_idx ON conversation_files USING btree (namespace, file_id);
ALTER TABLE ONLY conversation_files
    ADD CONSTRAINT conversation_files_conversation_fkey FOREIGN KEY (namespace, conversation_id) REFERENCES conversations(namespace, id) ON DELETE CASCADE;
ALTER TABLE ONLY conversation_files
    ADD CONSTRAINT conversation_files_file_fkey FOREIGN KEY (namespace, file_id) REFERENCES files(namespace, id);

CREATE TABLE conversation_summaries (
    namespace text DEFAULT 'default'::text NOT NULL,
    conversation_id text NOT NULL,
    through uuid NOT NULL,
    summary text NOT NULL,
    task_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY conversation_summaries
    ADD CONSTRAINT conversation_summaries_pkey PRIMARY KEY (namespace, conversation_id, through);
CREATE INDEX conversation_summaries_task_id_idx ON conversation_summaries USING btree (task_id);
ALTER TABLE ONLY conversation_summaries
    ADD CONSTRAINT conversation_summaries_conversation_fkey FOREIGN KEY (namespace, conversation_id) REFERENCES conversations(namespace, id) ON DELETE CASCADE;
ALTER TABLE ONLY conversation_summaries
    ADD CONSTRAINT conversation_summaries_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE SET NULL;

CREATE TABLE conversations (
    namespace text DEFAULT 'default'::text NOT NULL,
    id text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY conversations
    ADD CONSTRAINT conversations_pkey PRIMARY KEY (namespace, id);

CREATE TABLE error_states (
    namespace text NOT NULL,
    fingerprint text NOT NULL,
    state text NOT NULL,
    reason text,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    changed_by text NOT NULL,
    CONSTRAINT error_states_state_check CHECK ((state = ANY (ARRAY['resolved'::text, 'ignored'::text])))
);
ALTER TABLE ONLY error_states
    ADD CONSTRAINT error_states_pkey PRIMARY KEY (namespace, fingerprint);

CREATE TABLE evaluation_scores (
    agent_version_id uuid NOT NULL,
    evaluator text NOT NULL,
    count bigint DEFAULT 0 NOT NULL,
    sum double precision DEFAULT 0 NOT NULL,
    squares double precision DEFAULT 0 NOT NULL,
    passed bigint DEFAULT 0 NOT NULL,
    judged bigint DEFAULT 0 NOT NULL
);
ALTER TABLE ONLY evaluation_scores
    ADD CONSTRAINT evaluation_scores_pkey PRIMARY KEY (agent_version_id, evaluator);
ALTER TABLE ONLY evaluation_scores
    ADD CONSTRAINT evaluation_scores_agent_version_id_fkey FOREIGN KEY (agent_version_id) REFERENCES agent_versions(id) ON DELETE CASCADE;

CREATE TABLE evaluations (
    task_id uuid NOT NULL,
    evaluator text NOT NULL,
    agent_version_id uuid NOT NULL,
    state text DEFAULT 'due'::text NOT NULL,
    max_per_hour integer,
    budget jsonb,
    judge_task_id uuid,
    score double precision,
    passed boolean,
    problem text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    submitted_at timestamp with time zone,
    CONSTRAINT evaluations_score_check CHECK (((score >= (0)::double precision) AND (score <= (1)::double precision))),
    CONSTRAINT evaluations_scored_check CHECK (((state = 'scored'::text) = (score IS NOT NULL))),
    CONSTRAINT evaluations_state_check CHECK ((state = ANY (ARRAY['due'::text, 'submitted'::text, 'scored'::text, 'failed'::text, 'skipped'::text])))
);
ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_pkey PRIMARY KEY (task_id, evaluator);
CREATE INDEX evaluations_due_idx ON evaluations USING btree (task_id) WHERE (state = 'due'::text);
CREATE INDEX evaluations_judge_idx ON evaluations USING btree (judge_task_id) WHERE (judge_task_id IS NOT NULL);
CREATE INDEX evaluations_rate_idx ON evaluations USING btree (agent_version_id, evaluator, submitted_at);
CREATE INDEX evaluations_submitted_idx ON evaluations USING btree (task_id) WHERE (state = 'submitted'::text);
CREATE INDEX evaluations_unscored_idx ON evaluations USING btree (agent_version_id, task_id) WHERE (state = ANY (ARRAY['failed'::text, 'skipped'::text]));
ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_agent_version_id_fkey FOREIGN KEY (agent_version_id) REFERENCES agent_versions(id) ON DELETE CASCADE;
ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE executions (
    task_id uuid NOT NULL,
    claim integer NOT NULL,
    worker_id uuid NOT NULL,
    outcome text DEFAULT 'running'::text NOT NULL,
    error jsonb,
    cpu_seconds double precision,
    peak_memory_bytes bigint,
    input_tokens bigint DEFAULT '0'::bigint NOT NULL,
    output_tokens bigint DEFAULT '0'::bigint NOT NULL,
    cost_microdollars bigint DEFAULT '0'::bigint NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    finished_at timestamp with time zone,
    stream_key bytea,
    ended_in bigint,
    CONSTRAINT executions_outcome_check CHECK ((outcome = ANY (ARRAY['running'::text, 'succeeded'::text, 'failed'::text, 'retried'::text, 'suspended'::text, 'handed_back'::text, 'lost'::text, 'cancelled'::text, 'expired'::text])))
);
ALTER TABLE ONLY executions
    ADD CONSTRAINT executions_pkey PRIMARY KEY (task_id, claim);
CREATE INDEX executions_ended_in_idx ON executions USING btree (ended_in) WHERE (ended_in IS NOT NULL);
CREATE UNIQUE INDEX executions_one_success_idx ON executions USING btree (task_id) WHERE (outcome = 'succeeded'::text);
CREATE INDEX executions_worker_idx ON executions USING btree (worker_id);
CREATE TRIGGER executions_end BEFORE INSERT OR UPDATE OF finished_at ON executions FOR EACH ROW WHEN ((new.finished_at IS NOT NULL)) EXECUTE FUNCTION minion_mark_end();
ALTER TABLE ONLY executions
    ADD CONSTRAINT executions_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;
ALTER TABLE ONLY executions
    ADD CONSTRAINT executions_worker_id_fkey FOREIGN KEY (worker_id) REFERENCES workers(id);

CREATE TABLE files (
    namespace text NOT NULL,
    id text NOT NULL,
    number bigint NOT NULL,
    name text,
    media_type text NOT NULL,
    bytes integer NOT NULL,
    sha256 text NOT NULL,
    width integer,
    height integer,
    pages integer,
    owner text,
    uploaded_by text NOT NULL,
    uploaded_at timestamp with time zone DEFAULT now() NOT NULL,
    data bytea NOT NULL
);
ALTER TABLE ONLY files ALTER COLUMN data SET STORAGE EXTERNAL;
ALTER TABLE files ALTER COLUMN number ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME files_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE ONLY files
    ADD CONSTRAINT files_pkey PRIMARY KEY (namespace, id);
CREATE INDEX files_number_idx ON files USING btree (namespace, number);
CREATE INDEX files_uploaded_at_idx ON files USING btree (uploaded_at);

CREATE TABLE function_versions (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    function_id uuid NOT NULL,
    number integer NOT NULL,
    checksum text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    definition jsonb NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    status_reason text,
    released_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    key_order jsonb,
    CONSTRAINT function_versions_status_check CHECK ((status = ANY (ARRAY['active'::text, 'deprecated'::text, 'quarantined'::text])))
);
ALTER TABLE ONLY function_versions
    ADD CONSTRAINT function_versions_function_id_number_key UNIQUE (function_id, number);
ALTER TABLE ONLY function_versions
    ADD CONSTRAINT function_versions_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX function_versions_content_idx ON function_versions USING btree (function_id, checksum, md5(COALESCE((key_order)::text, ''::text)));
CREATE TRIGGER function_versions_immutable BEFORE UPDATE ON function_versions FOR EACH ROW WHEN (((to_jsonb(old.*) - '{status,status_reason,released_at}'::text[]) IS DISTINCT FROM (to_jsonb(new.*) - '{status,status_reason,released_at}'::text[]))) EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY function_versions
    ADD CONSTRAINT function_versions_function_id_fkey FOREIGN KEY (function_id) REFERENCES functions(id) ON DELETE CASCADE;

CREATE TABLE functions (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    active_version_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY functions
    ADD CONSTRAINT functions_namespace_name_key UNIQUE (namespace, name);
ALTER TABLE ONLY functions
    ADD CONSTRAINT functions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY functions
    ADD CONSTRAINT functions_active_version_id_fkey FOREIGN KEY (active_version_id) REFERENCES function_versions(id);

CREATE TABLE idempotency_keys (
    namespace text DEFAULT 'default'::text NOT NULL,
    key text NOT NULL,
    task_id uuid NOT NULL,
    request jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (namespace, key);
CREATE INDEX idempotency_keys_task_id_idx ON idempotency_keys USING btree (task_id);
ALTER TABLE ONLY idempotency_keys
    ADD CONSTRAINT idempotency_keys_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE key_addresses (
    key text NOT NULL,
    address text NOT NULL,
    last_seen timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY key_addresses
    ADD CONSTRAINT key_addresses_pkey PRIMARY KEY (key, address);

CREATE TABLE limits (
    namespace text DEFAULT 'default'::text NOT NULL,
    scope text NOT NULL,
    name text NOT NULL,
    max_running integer,
    rate integer,
    period_seconds double precision,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    input_tokens integer,
    input_tokens_seconds double precision,
    output_tokens integer,
    output_tokens_seconds double precision,
    created_by text,
    CONSTRAINT limits_input_tokens_check CHECK ((((input_tokens IS NULL) = (input_tokens_seconds IS NULL)) AND (input_tokens > 0) AND (input_tokens_seconds > (0)::double precision))),
    CONSTRAINT limits_max_running_check CHECK ((max_running >= 0)),
    CONSTRAINT limits_model_check CHECK (
CASE scope
    WHEN 'model'::text THEN (max_running IS NULL)
    ELSE (num_nonnulls(input_tokens, output_tokens) = 0)
END),
    CONSTRAINT limits_output_tokens_check CHECK ((((output_tokens IS NULL) = (output_tokens_seconds IS NULL)) AND (output_tokens > 0) AND (output_tokens_seconds > (0)::double precision))),
    CONSTRAINT limits_rate_check CHECK ((((rate IS NULL) = (period_seconds IS NULL)) AND (rate > 0) AND (period_seconds > (0)::double precision))),
    CONSTRAINT limits_scope_check CHECK ((scope = ANY (ARRAY['capability'::text, 'agent'::text, 'key'::text, 'model'::text]))),
    CONSTRAINT limits_something_check CHECK ((num_nonnulls(max_running, rate, input_tokens, output_tokens) > 0))
);
ALTER TABLE ONLY limits
    ADD CONSTRAINT limits_pkey PRIMARY KEY (namespace, scope, name);

CREATE TABLE login_sessions (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    hash bytea NOT NULL,
    kind text NOT NULL,
    user_name text NOT NULL,
    key_id uuid,
    key_hash bytea,
    subject text,
    role text,
    payloads boolean,
    namespace text,
    tenant text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    idle interval NOT NULL,
    last_used_at timestamp with time zone DEFAULT now() NOT NULL,
    address text,
    user_agent text,
    ended_at timestamp with time zone,
    ended_by text,
    CONSTRAINT login_sessions_hash_check CHECK (((octet_length(hash) = 32) AND (octet_length(key_hash) = 32))),
    CONSTRAINT login_sessions_key_check CHECK ((num_nonnulls(key_id, key_hash) =
CASE kind
    WHEN 'key'::text THEN 2
    ELSE 0
END)),
    CONSTRAINT login_sessions_kind_check CHECK ((kind = ANY (ARRAY['administrator'::text, 'key'::text, 'oidc'::text]))),
    CONSTRAINT login_sessions_rights_check CHECK ((num_nonnulls(subject, role, payloads) =
CASE kind
    WHEN 'oidc'::text THEN 3
    ELSE 0
END)),
    CONSTRAINT login_sessions_role_check CHECK ((role = ANY (ARRAY['viewer'::text, 'submitter'::text, 'operator'::text, 'approver'::text, 'author'::text, 'admin'::text])))
);
ALTER TABLE ONLY login_sessions
    ADD CONSTRAINT login_sessions_pkey PRIMARY KEY (id);
CREATE INDEX login_sessions_expires_at_idx ON login_sessions USING btree (expires_at);
CREATE UNIQUE INDEX login_sessions_hash_idx ON login_sessions USING btree (hash);
CREATE INDEX login_sessions_user_name_idx ON login_sessions USING btree (user_name);
ALTER TABLE ONLY login_sessions
    ADD CONSTRAINT login_sessions_key_id_fkey FOREIGN KEY (key_id) REFERENCES api_keys(id) ON DELETE CASCADE;

CREATE TABLE mcp_server_versions (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    mcp_server_id uuid NOT NULL,
    number integer NOT NULL,
    checksum text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    definition jsonb NOT NULL,
    key_order jsonb,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY mcp_server_versions
    ADD CONSTRAINT mcp_server_versions_mcp_server_id_number_key UNIQUE (mcp_server_id, number);
ALTER TABLE ONLY mcp_server_versions
    ADD CONSTRAINT mcp_server_versions_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX mcp_server_versions_content_idx ON mcp_server_versions USING btree (mcp_server_id, checksum, md5(COALESCE((key_order)::text, ''::text)));
CREATE TRIGGER mcp_server_versions_immutable BEFORE UPDATE ON mcp_server_versions FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY mcp_server_versions
    ADD CONSTRAINT mcp_server_versions_mcp_server_id_fkey FOREIGN KEY (mcp_server_id) REFERENCES mcp_servers(id) ON DELETE CASCADE;

CREATE TABLE mcp_servers (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    active_version_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY mcp_servers
    ADD CONSTRAINT mcp_servers_namespace_name_key UNIQUE (namespace, name);
ALTER TABLE ONLY mcp_servers
    ADD CONSTRAINT mcp_servers_pkey PRIMARY KEY (id);
ALTER TABLE ONLY mcp_servers
    ADD CONSTRAINT mcp_servers_active_version_id_fkey FOREIGN KEY (active_version_id) REFERENCES mcp_server_versions(id);

CREATE TABLE memory_changes (
    store_id uuid NOT NULL,
    number integer NOT NULL,
    command text NOT NULL,
    path text NOT NULL,
    new_path text,
    made_by text NOT NULL,
    task_id uuid,
    step integer,
    idempotency_key text,
    result text NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY memory_changes
    ADD CONSTRAINT memory_changes_once_key UNIQUE (store_id, idempotency_key);
ALTER TABLE ONLY memory_changes
    ADD CONSTRAINT memory_changes_pkey PRIMARY KEY (store_id, number);
ALTER TABLE ONLY memory_changes
    ADD CONSTRAINT memory_changes_store_id_fkey FOREIGN KEY (store_id) REFERENCES memory_stores(id) ON DELETE CASCADE;

CREATE TABLE memory_stores (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    tool text NOT NULL,
    per text NOT NULL,
    owner text NOT NULL,
    key text,
    changes integer DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    used_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT memory_stores_per_check CHECK ((per = ANY (ARRAY['conversation'::text, 'tenant'::text, 'agent'::text])))
);
ALTER TABLE ONLY memory_stores
    ADD CONSTRAINT memory_stores_owner_key UNIQUE NULLS NOT DISTINCT (namespace, tool, per, owner, key);
ALTER TABLE ONLY memory_stores
    ADD CONSTRAINT memory_stores_pkey PRIMARY KEY (id);
CREATE INDEX memory_stores_key_idx ON memory_stores USING btree (namespace, key);
CREATE INDEX memory_stores_used_idx ON memory_stores USING btree (used_at);

CREATE TABLE memory_versions (
    store_id uuid NOT NULL,
    path text NOT NULL,
    number integer NOT NULL,
    content text,
    bytes integer NOT NULL
);
ALTER TABLE ONLY memory_versions
    ADD CONSTRAINT memory_versions_pkey PRIMARY KEY (store_id, path, number);
ALTER TABLE ONLY memory_versions
    ADD CONSTRAINT memory_versions_store_id_fkey FOREIGN KEY (store_id, number) REFERENCES memory_changes(store_id, number) ON DELETE CASCADE;

CREATE TABLE message_batches (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    model text NOT NULL,
    batch_id text,
    calls integer DEFAULT 0 NOT NULL,
    error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    submitted_at timestamp with time zone,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone
);
ALTER TABLE ONLY message_batches
    ADD CONSTRAINT message_batches_batch_id_key UNIQUE (batch_id);
ALTER TABLE ONLY message_batches
    ADD CONSTRAINT message_batches_pkey PRIMARY KEY (id);
CREATE INDEX message_batches_open_idx ON message_batches USING btree (due_at) WHERE (ended_at IS NULL);

CREATE TABLE messages (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    conversation_id text NOT NULL,
    task_id uuid,
    role text NOT NULL,
    content jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT messages_role_check CHECK ((role = ANY (ARRAY['user'::text, 'assistant'::text, 'system'::text, 'tool'::text])))
);
ALTER TABLE ONLY messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (id);
CREATE INDEX messages_conversation_idx ON messages USING btree (namespace, conversation_id, id);
CREATE INDEX messages_task_id_idx ON messages USING btree (task_id);
CREATE TRIGGER messages_files AFTER INSERT ON messages FOR EACH ROW WHEN (jsonb_path_exists(new.content, '$.**."source"."file_id"'::jsonpath)) EXECUTE FUNCTION minion_hold_files_of_message();
ALTER TABLE ONLY messages
    ADD CONSTRAINT messages_conversation_fkey FOREIGN KEY (namespace, conversation_id) REFERENCES conversations(namespace, id) ON DELETE CASCADE;
ALTER TABLE ONLY messages
    ADD CONSTRAINT messages_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE SET NULL;

CREATE TABLE pauses (
    namespace text DEFAULT 'default'::text NOT NULL,
    scope text NOT NULL,
    name text NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    created_by text,
    CONSTRAINT pauses_scope_check CHECK ((scope = ANY (ARRAY['capability'::text, 'agent'::text, 'key'::text])))
);
ALTER TABLE ONLY pauses
    ADD CONSTRAINT pauses_pkey PRIMARY KEY (namespace, scope, name);

CREATE TABLE rate_holds (
    namespace text DEFAULT 'default'::text NOT NULL,
    scope text NOT NULL,
    name text NOT NULL,
    until_at timestamp with time zone NOT NULL,
    CONSTRAINT rate_holds_scope_check CHECK ((scope = ANY (ARRAY['capability'::text, 'agent'::text, 'key'::text])))
);
ALTER TABLE ONLY rate_holds
    ADD CONSTRAINT rate_holds_pkey PRIMARY KEY (namespace, scope, name);

CREATE TABLE relations (
    agent_version_id uuid NOT NULL,
    "position" smallint NOT NULL,
    agent_name text NOT NULL,
    for_each text
);
ALTER TABLE ONLY relations
    ADD CONSTRAINT relations_pkey PRIMARY KEY (agent_version_id, "position");
CREATE TRIGGER relations_immutable BEFORE UPDATE ON relations FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY relations
    ADD CONSTRAINT relations_agent_version_id_fkey FOREIGN KEY (agent_version_id) REFERENCES agent_versions(id) ON DELETE CASCADE;

CREATE TABLE remote_calls (
    task_id uuid NOT NULL,
    step integer NOT NULL,
    namespace text NOT NULL,
    server text NOT NULL,
    server_version_id uuid NOT NULL,
    remote_id text,
    state text NOT NULL,
    message text,
    requests text,
    form text,
    proposed jsonb,
    request_state text,
    answer jsonb,
    answered text[] DEFAULT '{}'::text[] NOT NULL,
    round smallint DEFAULT 0 NOT NULL,
    result text,
    poll_seconds double precision NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    polled_at timestamp with time zone,
    failures integer DEFAULT 0 NOT NULL,
    failing_since timestamp with time zone,
    error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT remote_calls_polled_check CHECK (((remote_id IS NOT NULL) OR (state = ANY (ARRAY['input_required'::text, 'answered'::text, 'sent'::text])))),
    CONSTRAINT remote_calls_result_check CHECK (((state = 'done'::text) = (result IS NOT NULL))),
    CONSTRAINT remote_calls_state_check CHECK ((state = ANY (ARRAY['working'::text, 'input_required'::text, 'answered'::text, 'sent'::text, 'done'::text, 'cancelling'::text])))
);
ALTER TABLE ONLY remote_calls
    ADD CONSTRAINT remote_calls_pkey PRIMARY KEY (task_id, step);
CREATE INDEX remote_calls_due_idx ON remote_calls USING btree (due_at) WHERE ((remote_id IS NOT NULL) AND (state = ANY (ARRAY['working'::text, 'input_required'::text, 'cancelling'::text])));
CREATE INDEX remote_calls_server_idx ON remote_calls USING btree (namespace, server, due_at) WHERE ((remote_id IS NOT NULL) AND (state = ANY (ARRAY['working'::text, 'input_required'::text, 'cancelling'::text])));
ALTER TABLE ONLY remote_calls
    ADD CONSTRAINT remote_calls_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE reservations (
    task_id uuid NOT NULL,
    step integer NOT NULL,
    claim integer NOT NULL,
    budget_task_id uuid NOT NULL,
    tokens bigint NOT NULL,
    microdollars bigint NOT NULL,
    steps integer NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    settled_at timestamp with time zone
);
ALTER TABLE ONLY reservations
    ADD CONSTRAINT reservations_pkey PRIMARY KEY (task_id, step, claim, budget_task_id);
CREATE INDEX reservations_budget_idx ON reservations USING btree (budget_task_id, settled_at);
ALTER TABLE ONLY reservations
    ADD CONSTRAINT reservations_budget_task_id_fkey FOREIGN KEY (budget_task_id) REFERENCES budgets(task_id) ON DELETE CASCADE;
ALTER TABLE ONLY reservations
    ADD CONSTRAINT reservations_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE retried_steps (
    task_id uuid NOT NULL,
    number integer NOT NULL,
    ended_in bigint NOT NULL,
    claim integer NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    usage jsonb,
    cost_microdollars bigint NOT NULL,
    function_version_id uuid,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone
);
ALTER TABLE ONLY retried_steps
    ADD CONSTRAINT retried_steps_pkey PRIMARY KEY (task_id, number, ended_in);
CREATE INDEX retried_steps_ended_in_idx ON retried_steps USING btree (ended_in);
ALTER TABLE ONLY retried_steps
    ADD CONSTRAINT retried_steps_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE saved_views (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text NOT NULL,
    owner text,
    name text NOT NULL,
    query text NOT NULL,
    maker text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    created_by text NOT NULL,
    CONSTRAINT saved_views_name_check CHECK ((name <> ''::text))
);
ALTER TABLE ONLY saved_views
    ADD CONSTRAINT saved_views_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX saved_views_name_idx ON saved_views USING btree (namespace, COALESCE(owner, ''::text), name);

CREATE TABLE schedules (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    cron text,
    timezone text DEFAULT 'UTC'::text NOT NULL,
    interval_seconds double precision,
    missed text DEFAULT 'once'::text NOT NULL,
    request jsonb NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    next_at timestamp with time zone NOT NULL,
    last_at timestamp with time zone,
    last_task_id uuid,
    last_error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    request_order jsonb,
    submitter_keys text[],
    CONSTRAINT schedules_cron_or_interval_check CHECK (((cron IS NULL) <> (interval_seconds IS NULL))),
    CONSTRAINT schedules_interval_check CHECK ((interval_seconds > (0)::double precision)),
    CONSTRAINT schedules_missed_check CHECK ((missed = ANY (ARRAY['skip'::text, 'once'::text, 'all'::text])))
);
ALTER TABLE ONLY schedules
    ADD CONSTRAINT schedules_namespace_name_key UNIQUE (namespace, name);
ALTER TABLE ONLY schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (id);
CREATE INDEX schedules_next_idx ON schedules USING btree (next_at) WHERE enabled;

CREATE TABLE secrets (
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    ciphertext text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (namespace, name);

CREATE TABLE security_events (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    function_version_id uuid,
    task_id uuid,
    kind text NOT NULL,
    detail jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_in bigint DEFAULT ((pg_current_xact_id())::text)::bigint
);
ALTER TABLE ONLY security_events
    ADD CONSTRAINT security_events_pkey PRIMARY KEY (id);
CREATE INDEX security_events_denied_idx ON security_events USING btree (function_version_id, created_at) WHERE (kind = ANY (ARRAY['forbidden_name'::text, 'hash_mismatch'::text, 'import_denied'::text, 'security'::text]));
CREATE INDEX security_events_ended_in_idx ON security_events USING btree (ended_in) WHERE (ended_in IS NOT NULL);
CREATE INDEX security_events_task_id_idx ON security_events USING btree (task_id);
CREATE INDEX security_events_time_idx ON security_events USING btree (function_version_id, created_at);
CREATE INDEX security_events_version_idx ON security_events USING btree (function_version_id, id);
ALTER TABLE ONLY security_events
    ADD CONSTRAINT security_events_function_version_id_fkey FOREIGN KEY (function_version_id) REFERENCES function_versions(id) ON DELETE CASCADE;
ALTER TABLE ONLY security_events
    ADD CONSTRAINT security_events_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE SET NULL;

CREATE TABLE signals (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    task_id uuid NOT NULL,
    name text NOT NULL,
    payload jsonb,
    step integer,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    payload_order jsonb
);
ALTER TABLE ONLY signals
    ADD CONSTRAINT signals_pkey PRIMARY KEY (id);
CREATE INDEX signals_task_idx ON signals USING btree (task_id, name, id);
ALTER TABLE ONLY signals
    ADD CONSTRAINT signals_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE sql_submitters (
    role text NOT NULL,
    namespace text NOT NULL,
    agents text[] DEFAULT '{}'::text[] NOT NULL,
    tenant text,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY sql_submitters
    ADD CONSTRAINT sql_submitters_pkey PRIMARY KEY (role);

CREATE TABLE standing_alerts (
    budget_id uuid NOT NULL,
    period_start timestamp with time zone NOT NULL,
    percent smallint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    logged_at timestamp with time zone
);
ALTER TABLE ONLY standing_alerts
    ADD CONSTRAINT standing_alerts_pkey PRIMARY KEY (budget_id, period_start, percent);
CREATE INDEX standing_alerts_unlogged_idx ON standing_alerts USING btree (created_at) WHERE (logged_at IS NULL);
ALTER TABLE ONLY standing_alerts
    ADD CONSTRAINT standing_alerts_usage_fkey FOREIGN KEY (budget_id, period_start) REFERENCES standing_usage(budget_id, period_start) ON DELETE CASCADE;

CREATE TABLE standing_budgets (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    scope text NOT NULL,
    namespace text DEFAULT ''::text NOT NULL,
    name text DEFAULT ''::text NOT NULL,
    period text NOT NULL,
    timezone text NOT NULL,
    tokens bigint,
    microdollars bigint,
    on_breach text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    created_by text,
    CONSTRAINT standing_budgets_limits_check CHECK (((num_nonnulls(tokens, microdollars) > 0) AND COALESCE((tokens > 0), true) AND COALESCE((microdollars > 0), true))),
    CONSTRAINT standing_budgets_names_check CHECK ((((namespace = ''::text) = (scope = 'installation'::text)) AND ((name = ''::text) = (scope = ANY (ARRAY['installation'::text, 'namespace'::text]))))),
    CONSTRAINT standing_budgets_on_breach_check CHECK ((on_breach = ANY (ARRAY['wait'::text, 'fail'::text, 'alert'::text]))),
    CONSTRAINT standing_budgets_period_check CHECK ((period = ANY (ARRAY['hour'::text, 'day'::text, 'month'::text]))),
    CONSTRAINT standing_budgets_scope_check CHECK ((scope = ANY (ARRAY['installation'::text, 'namespace'::text, 'agent'::text, 'key'::text, 'model'::text])))
);
ALTER TABLE ONLY standing_budgets
    ADD CONSTRAINT standing_budgets_pkey PRIMARY KEY (id);
ALTER TABLE ONLY standing_budgets
    ADD CONSTRAINT standing_budgets_scope_namespace_name_period_key UNIQUE (scope, namespace, name, period);

CREATE TABLE standing_reservations (
    task_id uuid NOT NULL,
    step integer NOT NULL,
    claim integer NOT NULL,
    budget_id uuid NOT NULL,
    period_start timestamp with time zone NOT NULL,
    tokens bigint NOT NULL,
    microdollars bigint NOT NULL
);
ALTER TABLE ONLY standing_reservations
    ADD CONSTRAINT standing_reservations_pkey PRIMARY KEY (task_id, step, claim, budget_id);
CREATE INDEX standing_reservations_usage_idx ON standing_reservations USING btree (budget_id, period_start);
ALTER TABLE ONLY standing_reservations
    ADD CONSTRAINT standing_reservations_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;
ALTER TABLE ONLY standing_reservations
    ADD CONSTRAINT standing_reservations_usage_fkey FOREIGN KEY (budget_id, period_start) REFERENCES standing_usage(budget_id, period_start) ON DELETE CASCADE;

CREATE TABLE standing_usage (
    budget_id uuid NOT NULL,
    period_start timestamp with time zone NOT NULL,
    period_end timestamp with time zone NOT NULL,
    spent_tokens bigint DEFAULT 0 NOT NULL,
    spent_microdollars bigint DEFAULT 0 NOT NULL,
    reserved_tokens bigint DEFAULT 0 NOT NULL,
    reserved_microdollars bigint DEFAULT 0 NOT NULL,
    CONSTRAINT standing_usage_amounts_check CHECK (((spent_tokens >= 0) AND (spent_microdollars >= 0) AND (reserved_tokens >= 0) AND (reserved_microdollars >= 0)))
);
ALTER TABLE ONLY standing_usage
    ADD CONSTRAINT standing_usage_pkey PRIMARY KEY (budget_id, period_start);
ALTER TABLE ONLY standing_usage
    ADD CONSTRAINT standing_usage_budget_id_fkey FOREIGN KEY (budget_id) REFERENCES standing_budgets(id) ON DELETE CASCADE;

CREATE TABLE statistics (
    grain text NOT NULL,
    kind text NOT NULL,
    bucket timestamp with time zone NOT NULL,
    namespace text NOT NULL,
    agent text DEFAULT ''::text NOT NULL,
    version integer DEFAULT 0 NOT NULL,
    capability text DEFAULT ''::text NOT NULL,
    tenant text DEFAULT ''::text NOT NULL,
    outcome text DEFAULT ''::text NOT NULL,
    step text DEFAULT ''::text NOT NULL,
    name text DEFAULT ''::text NOT NULL,
    function text DEFAULT ''::text NOT NULL,
    folded boolean DEFAULT false NOT NULL,
    count bigint DEFAULT '0'::bigint NOT NULL,
    microdollars bigint DEFAULT '0'::bigint NOT NULL,
    saved_microdollars bigint DEFAULT '0'::bigint NOT NULL,
    saved_steps bigint DEFAULT '0'::bigint NOT NULL,
    input_tokens bigint DEFAULT '0'::bigint NOT NULL,
    output_tokens bigint DEFAULT '0'::bigint NOT NULL,
    cache_read_tokens bigint DEFAULT '0'::bigint NOT NULL,
    cache_write_tokens bigint DEFAULT '0'::bigint NOT NULL,
    cached bigint DEFAULT '0'::bigint NOT NULL,
    run_seconds double precision DEFAULT '0'::double precision NOT NULL,
    wait_seconds double precision DEFAULT '0'::double precision NOT NULL,
    runs bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    waits bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    CONSTRAINT statistics_grain_check CHECK ((grain = ANY (ARRAY['total'::text, 'hour'::text, 'day'::text]))),
    CONSTRAINT statistics_kind_check CHECK ((kind = ANY (ARRAY['task'::text, 'failure'::text, 'execution'::text, 'step'::text, 'security'::text, 'webhook'::text])))
);
ALTER TABLE ONLY statistics
    ADD CONSTRAINT statistics_pkey PRIMARY KEY (grain, kind, bucket, namespace, agent, version, capability, tenant, outcome, step, name, function, folded);

CREATE TABLE statistics_state (
    id smallint DEFAULT '1'::smallint NOT NULL,
    counted_below bigint DEFAULT '0'::bigint NOT NULL,
    counted_at timestamp with time zone DEFAULT now() NOT NULL,
    moved_at timestamp with time zone DEFAULT now() NOT NULL,
    cluster bigint,
    marked_below bigint DEFAULT '0'::bigint NOT NULL,
    marked_at timestamp with time zone DEFAULT now() NOT NULL,
    gauges jsonb,
    gauges_at timestamp with time zone,
    CONSTRAINT statistics_state_one_check CHECK ((id = 1))
);
ALTER TABLE ONLY statistics_state
    ADD CONSTRAINT statistics_state_pkey PRIMARY KEY (id);

CREATE TABLE steps (
    task_id uuid NOT NULL,
    number integer NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    effect text DEFAULT 'pure'::text NOT NULL,
    request_hash text NOT NULL,
    claim integer NOT NULL,
    input jsonb,
    output jsonb,
    error jsonb,
    stdout text,
    usage jsonb,
    cost_microdollars bigint DEFAULT '0'::bigint NOT NULL,
    child_id uuid,
    function_version_id uuid,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    finished_at timestamp with time zone,
    due_at timestamp with time zone,
    copied_from uuid,
    input_order jsonb,
    output_order jsonb,
    approvals jsonb,
    ended_in bigint,
    program integer,
    line integer,
    CONSTRAINT steps_kind_check CHECK ((kind = ANY (ARRAY['model_call'::text, 'tool_call'::text, 'function_call'::text, 'subtask'::text, 'wait'::text]))),
    CONSTRAINT steps_number_check CHECK ((number > 0)),
    CONSTRAINT steps_only_subtasks_have_children_check CHECK (((child_id IS NULL) OR (kind = 'subtask'::text))),
    CONSTRAINT steps_status_check CHECK ((status = ANY (ARRAY['started'::text, 'finished'::text, 'failed'::text])))
);
ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_pkey PRIMARY KEY (task_id, number);
CREATE INDEX steps_child_idx ON steps USING btree (child_id) WHERE (child_id IS NOT NULL);
CREATE INDEX steps_due_idx ON steps USING btree (due_at) WHERE ((due_at IS NOT NULL) AND (status = 'started'::text));
CREATE INDEX steps_ended_in_idx ON steps USING btree (ended_in) WHERE (ended_in IS NOT NULL);
CREATE INDEX steps_open_idx ON steps USING btree (task_id) WHERE ((status = 'started'::text) AND (kind = ANY (ARRAY['subtask'::text, 'wait'::text])));
CREATE TRIGGER steps_begin_end BEFORE INSERT ON steps FOR EACH ROW WHEN (((new.finished_at IS NOT NULL) AND (new.copied_from IS NULL))) EXECUTE FUNCTION minion_mark_end();
CREATE TRIGGER steps_begin_event AFTER INSERT ON steps FOR EACH ROW EXECUTE FUNCTION minion_record_step();
CREATE TRIGGER steps_change_end BEFORE UPDATE OF finished_at ON steps FOR EACH ROW WHEN (((old.finished_at IS DISTINCT FROM new.finished_at) AND (new.copied_from IS NULL))) EXECUTE FUNCTION minion_mark_end();
CREATE TRIGGER steps_change_event AFTER UPDATE OF status ON steps FOR EACH ROW WHEN (((old.status IS DISTINCT FROM new.status) OR (old.claim IS DISTINCT FROM new.claim))) EXECUTE FUNCTION minion_record_step();
CREATE TRIGGER steps_retried AFTER UPDATE OF finished_at ON steps FOR EACH ROW WHEN (((old.ended_in IS NOT NULL) AND (old.finished_at IS DISTINCT FROM new.finished_at))) EXECUTE FUNCTION minion_keep_end();
CREATE TRIGGER steps_summary AFTER INSERT OR UPDATE ON steps FOR EACH ROW WHEN (((new.kind = 'model_call'::text) AND (new.status = 'finished'::text) AND (new.claim > 0) AND (new.output ?& ARRAY['summary'::text, 'through'::text]))) EXECUTE FUNCTION minion_keep_summary();
ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_child_id_fkey FOREIGN KEY (child_id) REFERENCES tasks(id) ON DELETE SET NULL;
ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_function_version_id_fkey FOREIGN KEY (function_version_id) REFERENCES function_versions(id);
ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE stops (
    scope text NOT NULL,
    namespace text DEFAULT ''::text NOT NULL,
    name text DEFAULT ''::text NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    created_by text,
    CONSTRAINT stops_names_check CHECK ((((namespace = ''::text) = (scope = 'installation'::text)) AND ((name = ''::text) = (scope = ANY (ARRAY['installation'::text, 'namespace'::text]))))),
    CONSTRAINT stops_scope_check CHECK ((scope = ANY (ARRAY['installation'::text, 'namespace'::text, 'agent'::text, 'key'::text])))
);
ALTER TABLE ONLY stops
    ADD CONSTRAINT stops_pkey PRIMARY KEY (scope, namespace, name);

CREATE TABLE task_events (
    task_id uuid NOT NULL,
    number integer NOT NULL,
    type text NOT NULL,
    data jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY task_events
    ADD CONSTRAINT task_events_pkey PRIMARY KEY (task_id, number);
ALTER TABLE ONLY task_events
    ADD CONSTRAINT task_events_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE task_files (
    task_id uuid NOT NULL,
    namespace text NOT NULL,
    file_id text NOT NULL
);
ALTER TABLE ONLY task_files
    ADD CONSTRAINT task_files_pkey PRIMARY KEY (task_id, namespace, file_id);
CREATE INDEX task_files_file_idx ON task_files USING btree (namespace, file_id);
ALTER TABLE ONLY task_files
    ADD CONSTRAINT task_files_file_fkey FOREIGN KEY (namespace, file_id) REFERENCES files(namespace, id);
ALTER TABLE ONLY task_files
    ADD CONSTRAINT task_files_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE task_outcomes (
    task_id uuid NOT NULL,
    state text NOT NULL,
    output jsonb,
    output_sha256 text,
    error jsonb,
    error_fingerprint text,
    finished_at timestamp with time zone DEFAULT now() NOT NULL,
    output_order jsonb,
    ended_in bigint DEFAULT ((pg_current_xact_id())::text)::bigint,
    CONSTRAINT task_outcomes_failed_has_error_check CHECK (((state = 'failed'::text) <= (error IS NOT NULL))),
    CONSTRAINT task_outcomes_one_output_check CHECK (((output IS NULL) OR (output_sha256 IS NULL))),
    CONSTRAINT task_outcomes_state_check CHECK ((state = ANY (ARRAY['cancelled'::text, 'expired'::text, 'failed'::text, 'succeeded'::text])))
);
ALTER TABLE ONLY task_outcomes
    ADD CONSTRAINT task_outcomes_pkey PRIMARY KEY (task_id);
CREATE INDEX task_outcomes_content_idx ON task_outcomes USING btree (output_sha256) WHERE (output_sha256 IS NOT NULL);
CREATE INDEX task_outcomes_ended_in_idx ON task_outcomes USING btree (ended_in) WHERE (ended_in IS NOT NULL);
CREATE INDEX task_outcomes_error_idx ON task_outcomes USING btree (error_fingerprint, finished_at) WHERE (state = 'failed'::text);
CREATE TRIGGER task_outcomes_immutable BEFORE UPDATE ON task_outcomes FOR EACH ROW WHEN (((to_jsonb(old.*) - 'ended_in'::text) IS DISTINCT FROM (to_jsonb(new.*) - 'ended_in'::text))) EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY task_outcomes
    ADD CONSTRAINT task_outcomes_output_sha256_fkey FOREIGN KEY (output_sha256) REFERENCES contents(sha256);
ALTER TABLE ONLY task_outcomes
    ADD CONSTRAINT task_outcomes_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE VIEW task_overview AS
 SELECT t.id,
    t.namespace,
    t.agent_name AS agent,
    v.number AS agent_version,
    s.state,
    COALESCE(s.capability, t.capability) AS capability,
    s.priority,
    t.input,
    t.messages,
    COALESCE(o.output, c.value) AS output,
    o.error,
    o.error_fingerprint,
    t.conversation_id,
    t.key,
    t.labels,
    t.parent_id,
    t.root_id,
    t.depth,
    t.replay_of,
    t.origin_id,
    t.submitted_by,
    t.traceparent,
    t.agent_version_id,
    s.claim,
    s.attempts,
    s.losses,
    s.worker_id,
    s.open_waits,
    s.wait_reason,
    s.due_at,
    s.cancel_requested,
    t.deadline,
    t.created_at,
    s.queued_at,
    s.updated_at,
    o.finished_at
   FROM ((((tasks t
     JOIN task_status s ON ((s.task_id = t.id)))
     LEFT JOIN task_outcomes o ON ((o.task_id = t.id)))
     LEFT JOIN contents c ON ((c.sha256 = o.output_sha256)))
     LEFT JOIN agent_versions v ON ((v.id = t.agent_version_id)));

CREATE TABLE task_status (
    task_id uuid NOT NULL,
    state text NOT NULL,
    capability text,
    priority smallint DEFAULT '0'::smallint NOT NULL,
    claim integer DEFAULT 0 NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    losses integer DEFAULT 0 NOT NULL,
    worker_id uuid,
    queued_at timestamp with time zone,
    published smallint DEFAULT '0'::smallint NOT NULL,
    published_at timestamp with time zone,
    open_waits integer DEFAULT 0 NOT NULL,
    wait_reason text,
    due_at timestamp with time zone,
    deadline timestamp with time zone,
    cancel_requested boolean DEFAULT false NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    agent_name text DEFAULT ''::text NOT NULL,
    key text DEFAULT ''::text NOT NULL,
    rank bigint DEFAULT '0'::bigint NOT NULL,
    conversation_id text,
    CONSTRAINT task_status_cancel_reaches_only_the_running_check CHECK (((NOT cancel_requested) OR (state = ANY (ARRAY['running'::text, 'cancelled'::text, 'expired'::text, 'failed'::text, 'succeeded'::text])))),
    CONSTRAINT task_status_counters_check CHECK (((claim >= 0) AND (attempts >= 0) AND (losses >= 0))),
    CONSTRAINT task_status_due_check CHECK (
CASE state
    WHEN 'scheduled'::text THEN (due_at IS NOT NULL)
    WHEN 'waiting'::text THEN true
    ELSE (due_at IS NULL)
END),
    CONSTRAINT task_status_open_waits_check CHECK (((open_waits >= 0) AND ((open_waits = 0) OR (state = 'waiting'::text)))),
    CONSTRAINT task_status_priority_check CHECK (((priority >= '-100'::integer) AND (priority <= 100))),
    CONSTRAINT task_status_routed_check CHECK (((capability IS NOT NULL) OR (state <> ALL (ARRAY['queued'::text, 'running'::text, 'waiting'::text])))),
    CONSTRAINT task_status_running_has_worker_check CHECK (((state = 'running'::text) = (worker_id IS NOT NULL))),
    CONSTRAINT task_status_state_check CHECK ((state = ANY (ARRAY['scheduled'::text, 'pending'::text, 'queued'::text, 'running'::text, 'waiting'::text, 'succeeded'::text, 'failed'::text, 'cancelled'::text, 'expired'::text]))),
    CONSTRAINT task_status_waiting_has_reason_check CHECK (((state = 'waiting'::text) = (wait_reason IS NOT NULL)))
)
WITH (fillfactor='80', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_analyze_scale_factor='0.02');
ALTER TABLE ONLY task_status
    ADD CONSTRAINT task_status_pkey PRIMARY KEY (task_id);
CREATE INDEX task_status_budget_idx ON task_status USING btree (task_id) WHERE (wait_reason = 'budget'::text);
CREATE INDEX task_status_deadline_idx ON task_status USING btree (deadline) WHERE ((deadline IS NOT NULL) AND (state <> ALL (ARRAY['cancelled'::text, 'expired'::text, 'failed'::text, 'succeeded'::text])));
CREATE INDEX task_status_due_idx ON task_status USING btree (due_at) WHERE ((due_at IS NOT NULL) AND (state = ANY (ARRAY['scheduled'::text, 'waiting'::text])));
CREATE INDEX task_status_held_idx ON task_status USING btree (wait_reason, task_id) WHERE (wait_reason = ANY (ARRAY['stopped'::text, 'standing_budget'::text]));
CREATE INDEX task_status_in_flight_idx ON task_status USING btree (capability, namespace, key, agent_name) WHERE (state = ANY (ARRAY['queued'::text, 'running'::text]));
CREATE INDEX task_status_line_idx ON task_status USING btree (capability, namespace, key, agent_name, rank, task_id) WHERE (state = 'pending'::text);
CREATE INDEX task_status_parked_idx ON task_status USING btree (namespace, conversation_id, task_id) WHERE ((state = 'pending'::text) AND (rank = '9000000000000000000'::bigint));
CREATE INDEX task_status_people_idx ON task_status USING btree (task_id) WHERE ((state = 'waiting'::text) AND (wait_reason = ANY (ARRAY['approval'::text, 'answer'::text])));
CREATE INDEX task_status_queued_idx ON task_status USING btree (capability, queued_at) WHERE (state = 'queued'::text);
CREATE INDEX task_status_state_idx ON task_status USING btree (state, task_id);
CREATE INDEX task_status_turn_idx ON task_status USING btree (namespace, conversation_id, ((claim = 0)), task_id) WHERE ((conversation_id IS NOT NULL) AND (state = ANY (ARRAY['pending'::text, 'queued'::text, 'running'::text, 'waiting'::text])));
CREATE INDEX task_status_worker_idx ON task_status USING btree (worker_id) WHERE (worker_id IS NOT NULL);
CREATE TRIGGER task_status_beginning BEFORE INSERT ON task_status FOR EACH ROW EXECUTE FUNCTION minion_check_transition();
CREATE TRIGGER task_status_claim BEFORE UPDATE OF claim ON task_status FOR EACH ROW WHEN ((new.claim < old.claim)) EXECUTE FUNCTION minion_claims_only_grow();
CREATE TRIGGER task_status_event AFTER UPDATE OF state ON task_status FOR EACH ROW WHEN (((old.state <> new.state) AND ((new.state = ANY (ARRAY['running'::text, 'waiting'::text])) OR ((new.state = 'pending'::text) AND (old.state = ANY (ARRAY['scheduled'::text, 'running'::text, 'waiting'::text])))))) EXECUTE FUNCTION minion_record_state();
CREATE TRIGGER task_status_transition BEFORE UPDATE OF state ON task_status FOR EACH ROW WHEN ((old.state IS DISTINCT FROM new.state)) EXECUTE FUNCTION minion_check_transition();
ALTER TABLE ONLY task_status
    ADD CONSTRAINT task_status_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;
ALTER TABLE ONLY task_status
    ADD CONSTRAINT task_status_worker_id_fkey FOREIGN KEY (worker_id) REFERENCES workers(id);

CREATE TABLE tasks (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    agent_name text,
    agent_version_id uuid,
    capability text,
    input jsonb,
    messages jsonb,
    parent_id uuid,
    parent_step integer,
    root_id uuid NOT NULL,
    depth smallint DEFAULT '0'::smallint NOT NULL,
    replay_of uuid,
    origin_id uuid NOT NULL,
    conversation_id text,
    key text,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    submitted_by text,
    traceparent text,
    journal_format smallint DEFAULT '1'::smallint NOT NULL,
    deadline timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    budget_ids uuid[],
    from_step integer,
    history_before timestamp with time zone,
    routing jsonb,
    effect_origin uuid,
    input_order jsonb,
    submitter_keys text[],
    lane text,
    CONSTRAINT tasks_depth_check CHECK ((depth >= 0)),
    CONSTRAINT tasks_labels_check CHECK ((jsonb_typeof(labels) = 'object'::text)),
    CONSTRAINT tasks_parent_check CHECK (((parent_id IS NULL) = (parent_step IS NULL))),
    CONSTRAINT tasks_pinned_check CHECK (((agent_version_id IS NULL) OR (agent_name IS NOT NULL)))
);
ALTER TABLE ONLY tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (id);
CREATE INDEX tasks_agent_idx ON tasks USING btree (namespace, agent_name, id);
CREATE INDEX tasks_conversation_idx ON tasks USING btree (namespace, conversation_id, id) WHERE (conversation_id IS NOT NULL);
CREATE INDEX tasks_parent_idx ON tasks USING btree (parent_id) WHERE (parent_id IS NOT NULL);
CREATE INDEX tasks_replay_idx ON tasks USING btree (replay_of) WHERE (replay_of IS NOT NULL);
CREATE INDEX tasks_root_idx ON tasks USING btree (root_id);
CREATE TRIGGER tasks_blocks BEFORE INSERT ON tasks FOR EACH ROW WHEN ((jsonb_path_exists(new.messages, 'strict $[*]."content"?(@.type() == "array")'::jsonpath, '{}'::jsonb, true) OR (strpos((new.input)::text, '"$file"'::text) > 0))) EXECUTE FUNCTION minion_mark_blocks();
CREATE TRIGGER tasks_files AFTER INSERT ON tasks FOR EACH ROW WHEN ((new.journal_format >= 2)) EXECUTE FUNCTION minion_hold_files_of_task();
CREATE TRIGGER tasks_immutable BEFORE UPDATE ON tasks FOR EACH ROW WHEN ((((old.agent_version_id IS NOT NULL) AND (new.agent_version_id IS DISTINCT FROM old.agent_version_id)) OR ((old.agent_name IS NOT NULL) AND (new.agent_name IS DISTINCT FROM old.agent_name)) OR ((((((old.id IS DISTINCT FROM new.id) OR (old.namespace IS DISTINCT FROM new.namespace)) OR (old.root_id IS DISTINCT FROM new.root_id)) OR (old.origin_id IS DISTINCT FROM new.origin_id)) OR (old.depth IS DISTINCT FROM new.depth)) OR (old.created_at IS DISTINCT FROM new.created_at)) OR (((((old.input IS DISTINCT FROM new.input) OR (old.messages IS DISTINCT FROM new.messages)) OR (old.parent_id IS DISTINCT FROM new.parent_id)) OR (old.parent_step IS DISTINCT FROM new.parent_step)) OR (old.conversation_id IS DISTINCT FROM new.conversation_id)) OR ((((((old.capability IS DISTINCT FROM new.capability) OR (old.key IS DISTINCT FROM new.key)) OR (old.submitted_by IS DISTINCT FROM new.submitted_by)) OR (old.traceparent IS DISTINCT FROM new.traceparent)) OR (old.journal_format IS DISTINCT FROM new.journal_format)) OR (old.deadline IS DISTINCT FROM new.deadline)) OR ((new.replay_of IS NOT NULL) AND (new.replay_of IS DISTINCT FROM old.replay_of)))) EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY tasks
    ADD CONSTRAINT tasks_agent_version_id_fkey FOREIGN KEY (agent_version_id) REFERENCES agent_versions(id);
ALTER TABLE ONLY tasks
    ADD CONSTRAINT tasks_parent_id_fkey FOREIGN KEY (parent_id) REFERENCES tasks(id) ON DELETE CASCADE;
ALTER TABLE ONLY tasks
    ADD CONSTRAINT tasks_replay_of_fkey FOREIGN KEY (replay_of) REFERENCES tasks(id) ON DELETE SET NULL;

CREATE TABLE tool_versions (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    tool_id uuid NOT NULL,
    number integer NOT NULL,
    checksum text NOT NULL,
    type text NOT NULL,
    effect text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    definition jsonb NOT NULL,
    function_version_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    key_order jsonb,
    mcp_server_version_id uuid,
    CONSTRAINT tool_versions_effect_check CHECK ((effect = ANY (ARRAY['pure'::text, 'idempotent'::text, 'unsafe'::text]))),
    CONSTRAINT tool_versions_type_check CHECK ((type = ANY (ARRAY['function'::text, 'http'::text, 'mcp'::text, 'agent'::text, 'builtin'::text, 'web_search'::text, 'web_fetch'::text, 'code_execution'::text, 'memory'::text])))
);
ALTER TABLE ONLY tool_versions
    ADD CONSTRAINT tool_versions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tool_versions
    ADD CONSTRAINT tool_versions_tool_id_number_key UNIQUE (tool_id, number);
CREATE UNIQUE INDEX tool_versions_content_idx ON tool_versions USING btree (tool_id, checksum, md5(COALESCE((key_order)::text, ''::text)));
CREATE TRIGGER tool_versions_immutable BEFORE UPDATE ON tool_versions FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
ALTER TABLE ONLY tool_versions
    ADD CONSTRAINT tool_versions_function_version_id_fkey FOREIGN KEY (function_version_id) REFERENCES function_versions(id);
ALTER TABLE ONLY tool_versions
    ADD CONSTRAINT tool_versions_mcp_server_version_id_fkey FOREIGN KEY (mcp_server_version_id) REFERENCES mcp_server_versions(id);
ALTER TABLE ONLY tool_versions
    ADD CONSTRAINT tool_versions_tool_id_fkey FOREIGN KEY (tool_id) REFERENCES tools(id) ON DELETE CASCADE;

CREATE TABLE tools (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    active_version_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY tools
    ADD CONSTRAINT tools_namespace_name_key UNIQUE (namespace, name);
ALTER TABLE ONLY tools
    ADD CONSTRAINT tools_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tools
    ADD CONSTRAINT tools_active_version_id_fkey FOREIGN KEY (active_version_id) REFERENCES tool_versions(id);

CREATE TABLE tracing_state (
    id smallint DEFAULT '1'::smallint NOT NULL,
    exported_below bigint NOT NULL,
    exported_at timestamp with time zone DEFAULT now() NOT NULL,
    since timestamp with time zone,
    cluster bigint,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    exported bigint DEFAULT '0'::bigint NOT NULL,
    refused bigint DEFAULT '0'::bigint NOT NULL,
    pruned bigint DEFAULT '0'::bigint NOT NULL,
    CONSTRAINT tracing_state_one_check CHECK ((id = 1))
);
ALTER TABLE ONLY tracing_state
    ADD CONSTRAINT tracing_state_pkey PRIMARY KEY (id);

CREATE TABLE trials (
    task_id uuid NOT NULL,
    level text NOT NULL,
    allow_idempotent boolean NOT NULL,
    recording text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT trials_level_check CHECK ((level = ANY (ARRAY['replay'::text, 'shadow'::text])))
);
ALTER TABLE ONLY trials
    ADD CONSTRAINT trials_pkey PRIMARY KEY (task_id);
ALTER TABLE ONLY trials
    ADD CONSTRAINT trials_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

CREATE TABLE unique_tasks (
    namespace text DEFAULT 'default'::text NOT NULL,
    key text NOT NULL,
    task_id uuid NOT NULL,
    held_while text NOT NULL,
    CONSTRAINT unique_tasks_held_while_check CHECK ((held_while = ANY (ARRAY['pending'::text, 'running'::text])))
);
ALTER TABLE ONLY unique_tasks
    ADD CONSTRAINT unique_tasks_pkey PRIMARY KEY (namespace, key);
CREATE INDEX unique_tasks_task_id_idx ON unique_tasks USING btree (task_id);
ALTER TABLE ONLY unique_tasks
    ADD CONSTRAINT unique_tasks_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE watched_hours (
    bucket timestamp with time zone NOT NULL,
    namespace text DEFAULT ''::text NOT NULL,
    capability text DEFAULT ''::text NOT NULL,
    samples bigint DEFAULT '0'::bigint NOT NULL,
    seconds double precision DEFAULT '0'::double precision NOT NULL
);
ALTER TABLE ONLY watched_hours
    ADD CONSTRAINT watched_hours_pkey PRIMARY KEY (bucket, namespace, capability);

CREATE TABLE webhook_deliveries (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    webhook_id uuid NOT NULL,
    task_id uuid NOT NULL,
    state text NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_at timestamp with time zone DEFAULT now() NOT NULL,
    last_status integer,
    last_error text,
    finished_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_in bigint,
    CONSTRAINT webhook_deliveries_state_check CHECK ((state = ANY (ARRAY['cancelled'::text, 'expired'::text, 'failed'::text, 'succeeded'::text]))),
    CONSTRAINT webhook_deliveries_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text])))
);
ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id);
ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_webhook_id_task_id_key UNIQUE (webhook_id, task_id);
CREATE INDEX webhook_deliveries_ended_in_idx ON webhook_deliveries USING btree (ended_in) WHERE (ended_in IS NOT NULL);
CREATE INDEX webhook_deliveries_next_idx ON webhook_deliveries USING btree (webhook_id, next_at) WHERE (status = 'pending'::text);
CREATE INDEX webhook_deliveries_task_id_idx ON webhook_deliveries USING btree (task_id);
CREATE INDEX webhook_deliveries_webhook_id_idx ON webhook_deliveries USING btree (webhook_id, id);
CREATE TRIGGER webhook_deliveries_end BEFORE UPDATE OF finished_at ON webhook_deliveries FOR EACH ROW WHEN ((old.finished_at IS DISTINCT FROM new.finished_at)) EXECUTE FUNCTION minion_mark_end();
ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;
ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES webhooks(id) ON DELETE CASCADE;

CREATE TABLE webhooks (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    url text NOT NULL,
    secret text NOT NULL,
    previous_secret text,
    rotated_at timestamp with time zone,
    states text[] DEFAULT '{}'::text[] NOT NULL,
    agents text[] DEFAULT '{}'::text[] NOT NULL,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    roots_only boolean DEFAULT true NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    disabled_reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    events text[] DEFAULT '{tasks}'::text[] NOT NULL,
    CONSTRAINT webhooks_events_check CHECK (((events <> '{}'::text[]) AND (events <@ ARRAY['tasks'::text, 'alerts'::text]) AND (cardinality(events) <= 2)))
);
ALTER TABLE ONLY webhooks
    ADD CONSTRAINT webhooks_namespace_name_key UNIQUE (namespace, name);
ALTER TABLE ONLY webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (id);

CREATE TABLE workers (
    id uuid DEFAULT minion_uuidv7() NOT NULL,
    name text NOT NULL,
    capabilities text[] NOT NULL,
    slots integer NOT NULL,
    busy integer DEFAULT 0 NOT NULL,
    idle_since timestamp with time zone,
    active text[] DEFAULT '{}'::text[] NOT NULL,
    status text DEFAULT 'online'::text NOT NULL,
    pool text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen timestamp with time zone DEFAULT now() NOT NULL,
    packages text[],
    memory_bytes bigint,
    CONSTRAINT workers_status_check CHECK ((status = ANY (ARRAY['online'::text, 'stopped'::text, 'lost'::text])))
);
ALTER TABLE ONLY workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (id);
CREATE INDEX workers_online_idx ON workers USING btree (last_seen) WHERE (status = 'online'::text);

CREATE FUNCTION minion_accept(request jsonb, OUT task_id uuid, OUT created boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM minion_notify_pending();
    SELECT * INTO task_id, created FROM minion_insert_tasks(jsonb_build_array(request));
END $$;

CREATE FUNCTION minion_accept_bounded(request jsonb) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
DECLARE
    bounds jsonb := minion_session_bounds();
    agents text[] := ARRAY(SELECT jsonb_array_elements_text(bounds->'agents'));
    most text := minion_limit_inputs();
    accepted record;
BEGIN
    IF bounds IS NOT NULL THEN
        request := minion_within_bounds(request, bounds);
        PERFORM minion_check_reach(request, agents);
    END IF;
    SELECT * INTO accepted FROM minion_accept(request);
    PERFORM minion_limit_inputs(most);
    IF NOT accepted.created THEN
        -- Another session may have taken the key since.
        PERFORM minion_check_reach(request - 'conversation_id', agents);
    END IF;
    RETURN accepted.task_id;
END $$;

CREATE FUNCTION minion_accept_many(requests jsonb) RETURNS TABLE(task_id uuid, created boolean)
    LANGUAGE plpgsql
    AS $_$
DECLARE
    accepted integer := 0;
    refused integer := jsonb_array_length(requests);
    tried integer;
    state text;
    message text;
BEGIN
    PERFORM minion_notify_pending();
    IF refused = 1 THEN
        RETURN QUERY SELECT * FROM minion_insert_tasks(requests);
        RETURN;
    END IF;
    -- A condition whose code ends in 000 is the class of all codes that begin with the same two characters.
    BEGIN
        RETURN QUERY SELECT * FROM minion_insert_tasks(requests);
        RETURN;
    EXCEPTION WHEN SQLSTATE 'MN000' OR data_exception OR integrity_constraint_violation THEN
        GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    END;
    -- The first `accepted` requests can be accepted together, the first `refused` ones cannot. (To accept them one by
    -- one would take their keys in another order than other calls do.)
    WHILE accepted + 1 < refused LOOP
        tried := (accepted + refused) / 2;
        BEGIN
            PERFORM minion_insert_tasks(
                jsonb_path_query_array(requests, '$[0 to $last]', jsonb_build_object('last', tried - 1)));
            accepted := tried;
            RAISE SQLSTATE 'MN000';  -- undoes the insert
        EXCEPTION WHEN SQLSTATE 'MN000' OR data_exception OR integrity_constraint_violation THEN
            IF accepted < tried THEN
                refused := tried;
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
            END IF;
        END;
    END LOOP;
    RAISE EXCEPTION USING ERRCODE = state, MESSAGE = message, DETAIL = jsonb_build_object('index', refused - 1);
END $_$;

CREATE FUNCTION minion_accept_now(request jsonb, expected uuid, lease interval) RETURNS TABLE(task_id uuid, created boolean, claim integer, queue text, agent_name text, soft_time_limit integer, time_limit integer, priority smallint, version_id uuid, has_model boolean)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
DECLARE
    accepted record;
    taken boolean := false;
BEGIN
    IF expected IS NOT NULL AND NOT EXISTS (
            SELECT FROM agents WHERE namespace = COALESCE(request->>'namespace', 'default') AND name = request->>'agent'
                AND active_version_id = expected AND status <> 'disabled'
                AND NOT EXISTS (SELECT FROM minion_canary_for(request, expected))) THEN
        RETURN;
    END IF;
    SELECT * INTO accepted FROM minion_insert_tasks(jsonb_build_array(request));
    IF accepted.created THEN
        taken := minion_take_now(accepted.task_id, lease);
    END IF;
    RETURN QUERY SELECT accepted.task_id, accepted.created, s.claim, s.capability, v.name, v.soft_time_limit, v.time_limit,
                        s.priority, v.id, v.type = 'agent'
        FROM (SELECT 1) AS always
            LEFT JOIN (task_status s JOIN tasks t ON t.id = s.task_id JOIN agent_versions v ON v.id = t.agent_version_id)
                ON taken AND s.task_id = accepted.task_id;
END $$;

CREATE FUNCTION minion_add_approval(s steps, people integer, value jsonb, value_order jsonb, one jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object(
        'people', people, 'arguments', value, 'order', value_order,
        -- As text: 1 and 1.0 are equal as jsonb.
        'edited', value::text <> (CASE WHEN s.kind = 'wait' THEN s.input->'approval' ELSE (
            SELECT r.proposed FROM remote_calls r WHERE r.task_id = s.task_id AND r.step = s.number) END)::text,
        'by', COALESCE(jsonb_agg(e.earlier ORDER BY e.n) FILTER (
            WHERE e.earlier->>'key' <> one->>'key' AND (s.approvals->'arguments')::text = value::text), '[]') || one)
        FROM (SELECT) AS always
            LEFT JOIN jsonb_array_elements(minion_standing_approvals(s)) WITH ORDINALITY AS e (earlier, n) ON true
$$;

CREATE FUNCTION minion_alert(budget uuid, starts timestamp with time zone, reached numeric) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO standing_alerts (budget_id, period_start, percent)
        SELECT budget, starts, v.percent FROM standing_usage u, (VALUES (50), (80), (100)) AS v (percent)
            WHERE u.budget_id = budget AND u.period_start = starts AND v.percent <= reached AND NOT EXISTS (
                SELECT 1 FROM standing_alerts a
                    WHERE a.budget_id = budget AND a.period_start = starts AND a.percent = v.percent)
        ON CONFLICT DO NOTHING
$$;

CREATE FUNCTION minion_answer_call(b uuid, name text, answer text, used jsonb, usage_of_step jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    call batch_calls;
BEGIN
    SELECT * INTO call FROM batch_calls WHERE custom_id = name AND batch = b AND result IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM task_status WHERE task_id = call.task_id FOR NO KEY UPDATE;
    UPDATE batch_calls SET result = answer, answered_at = now(), usage = usage_of_step, body = NULL, error = NULL
        WHERE custom_id = name AND batch = b AND result IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM minion_settle_step(call.task_id, call.claim, used || jsonb_build_object('step', call.step));
    UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now()
        WHERE task_id = call.task_id AND state = 'waiting' AND wait_reason = 'batch';
    IF FOUND THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION minion_answer_remote(t uuid, number integer, given jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    is_plain boolean;
BEGIN
    UPDATE remote_calls SET answer = given, changed_at = now(), due_at = now(), form = NULL, proposed = NULL,
                            state = CASE WHEN remote_id IS NULL THEN 'answered' ELSE 'working' END
        WHERE task_id = t AND step = number AND state = 'input_required' RETURNING remote_id IS NULL INTO is_plain;
    UPDATE steps s SET usage = jsonb_set(s.usage - 'asks', '{answers}',
            COALESCE(s.usage->'answers', '[]') || jsonb_build_array(given->'decision' || jsonb_build_object(
                'verdict', given->'verdict')))
        WHERE s.task_id = t AND s.number = minion_answer_remote.number AND s.status = 'started';
    IF is_plain THEN
        PERFORM minion_count_down(t, 1);
    ELSE
        PERFORM minion_show_remote(t);
    END IF;
END $$;

CREATE FUNCTION minion_approval_policy(s steps) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE jsonb_typeof(found.policy) WHEN 'object' THEN found.policy END FROM (
        SELECT CASE WHEN s.number = 1 AND s.kind = 'wait' AND v.definition->'config'->'approval' <> 'false'
                    THEN v.definition->'config'->'approval' ELSE k.definition->'approval' END AS policy
            FROM tasks t JOIN agent_versions v ON v.id = t.agent_version_id
            LEFT JOIN tool_versions k ON k.id = COALESCE(v.tool_version_id, (
                SELECT o.id FROM agent_version_tools l JOIN tool_versions o ON o.id = l.tool_version_id
                    WHERE l.agent_version_id = v.id AND o.name = s.name))
            WHERE t.id = s.task_id AND (s.kind = 'wait' AND s.input ? 'approval' OR minion_asks(s))) AS found
$$;

CREATE FUNCTION minion_approvers(required jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT COALESCE(string_agg(concat_ws(' or ',
            'the key ' || NULLIF(array_to_string(ARRAY(SELECT jsonb_array_elements_text(a.one->'keys')), ' or '), ''),
            'a key with the role '
                || NULLIF(array_to_string(ARRAY(SELECT jsonb_array_elements_text(a.one->'roles')), ' or '), '')),
            ', which must also be ' ORDER BY n), 'any key that may decide about tasks')
        || CASE WHEN required->'not_submitter' = 'true' THEN ', but no key that submitted the task' ELSE '' END
        FROM jsonb_array_elements(required->'approvers') WITH ORDINALITY AS a (one, n)
$$;

CREATE FUNCTION minion_are_messages(candidates jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $_$
    SELECT CASE WHEN jsonb_typeof(candidates) = 'array' THEN
        jsonb_array_length(candidates) BETWEEN 1 AND 1000 AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(candidates) AS c (message)
                WHERE (jsonb_typeof(message) = 'object' AND (jsonb_typeof(message->'content') = 'string'
                            OR jsonb_typeof(message->'content') = 'array' AND message->'content' <> '[]'
                                AND NOT jsonb_path_exists(message->'content', 'lax $[*] ? (@.type() != "object")'))
                       AND message->>'role' IN ('user', 'assistant', 'system', 'tool')) IS NOT TRUE)
        ELSE false END
$_$;

CREATE FUNCTION minion_ask(t uuid, c integer, result jsonb) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    state_now text := minion_snooze(t, c, result, interval '0', 'answer');
BEGIN
    IF state_now = 'waiting' THEN
        UPDATE task_status SET open_waits = 1, due_at = NULL WHERE task_id = t;
    END IF;
    RETURN state_now;
END $$;

CREATE FUNCTION minion_asks(s steps) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT COALESCE(s.usage ? 'asks' AND s.kind = 'tool_call' AND s.status = 'started', false)
$$;

CREATE FUNCTION minion_await_batch(t uuid, c integer, result jsonb) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    state_now text := minion_stop_running(t, c, result);
BEGIN
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    ELSIF EXISTS (SELECT 1 FROM batch_calls b WHERE b.task_id = t AND b.result IS NULL) THEN
        UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = 'batch', updated_at = now()
            WHERE task_id = t;
        RETURN 'waiting';
    END IF;
    UPDATE task_status SET state = 'pending', worker_id = NULL, updated_at = now() WHERE task_id = t;
    PERFORM minion_notify_pending();
    RETURN 'pending';
END $$;

CREATE FUNCTION minion_batch_created(b uuid, api_id text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE message_batches SET batch_id = api_id, submitted_at = now(), due_at = now(), error = NULL
        WHERE id = b AND batch_id IS NULL;
    IF NOT FOUND THEN
        -- Another orchestrator may have found it.
        RETURN EXISTS (SELECT 1 FROM message_batches m WHERE m.batch_id = api_id);
    END IF;
    UPDATE steps s SET usage = jsonb_build_object('batch', api_id) FROM batch_calls c
        WHERE c.batch = b AND c.result IS NULL AND s.task_id = c.task_id AND s.number = c.step AND s.status = 'started';
    RETURN true;
END $$;

CREATE FUNCTION minion_batch_refused(b uuid, why text, delay interval, most integer) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    freed integer;
BEGIN
    PERFORM 1 FROM message_batches WHERE id = b AND batch_id IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    UPDATE batch_calls SET batch = NULL, error = why, due_at = now() + delay, together = COALESCE(most, together)
        WHERE batch = b AND result IS NULL;
    GET DIAGNOSTICS freed = ROW_COUNT;
    DELETE FROM message_batches WHERE id = b;
    RETURN freed;
END $$;

CREATE FUNCTION minion_begin_batched(t uuid, c integer, journal jsonb, reserve jsonb, call jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    flags jsonb;
    number integer := call->>'step';
    name text := minion_custom_id(t, number, c, 1);
BEGIN
    PERFORM 1 FROM task_status WHERE task_id = t AND claim = c AND state = 'running' FOR NO KEY UPDATE;
    IF FOUND THEN
        DELETE FROM batch_calls WHERE task_id = t AND step = number AND claim < c AND result IS NOT NULL;
    END IF;
    flags := minion_spend(t, c, journal, reserve, NULL);
    IF flags IS NULL OR flags ?| '{breach,stopped,unreserved}' OR flags->'cancel' = 'true' THEN
        RETURN flags;
    END IF;
    INSERT INTO batch_calls (task_id, step, claim, custom_id, model, body, bytes)
        VALUES (t, number, c, name, call->>'model', call->>'body', octet_length(call->>'body'))
        ON CONFLICT (task_id, step) DO UPDATE SET
            claim = c, custom_id = name, attempt = 1, model = EXCLUDED.model, body = EXCLUDED.body, bytes = EXCLUDED.bytes,
            batch = NULL, together = NULL, result = NULL, answered_at = NULL, usage = NULL, error = NULL,
            created_at = now(), due_at = now()
            WHERE batch_calls.claim <> c;
    RETURN flags;
END $$;

CREATE FUNCTION minion_begin_remote(t uuid, c integer, journal jsonb, call jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN false;
    END IF;
    PERFORM minion_put_steps(t, c, journal);
    DELETE FROM remote_calls WHERE task_id = t AND step = (call->>'step')::integer;
    INSERT INTO remote_calls (task_id, step, namespace, server, server_version_id, remote_id, state, message, requests,
                              form, proposed, request_state, round, poll_seconds, due_at, expires_at)
        SELECT t, n.step, n.namespace, n.server, n.server_version_id, n.remote_id, n.state, n.message, n.requests, n.form,
               n.proposed, n.request_state, n.round, n.poll_seconds, now() + n.poll_seconds * interval '1 s',
               now() + n.ttl_seconds * interval '1 s'
            FROM jsonb_to_record(call) AS n (
                step integer, namespace text, server text, server_version_id uuid, remote_id text, state text, message text, requests text,
                form text, proposed jsonb, request_state text, round integer, poll_seconds double precision,
                ttl_seconds double precision);
    RETURN true;
END $$;

CREATE FUNCTION minion_breach(ids uuid[], asked jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    tight record;
    held numeric;
BEGIN
    SELECT b.task_id, k.agent_name, b.on_breach, b.changed_at, f.* INTO tight
        FROM unnest(ids) WITH ORDINALITY AS u (id, n) JOIN budgets b ON b.task_id = u.id JOIN tasks k ON k.id = u.id
        LEFT JOIN executions e ON e.task_id = b.task_id AND e.claim = 1
        CROSS JOIN LATERAL (VALUES
            (1, 'tokens', b.tokens::numeric, b.spent_tokens::numeric, COALESCE((asked->>'tokens')::numeric, 0)),
            (2, 'dollars', b.microdollars / 1000000.0, b.spent_microdollars / 1000000.0,
                CASE WHEN asked->'microdollars' = 'null' THEN NULL
                     ELSE COALESCE((asked->>'microdollars')::numeric / 1000000, 0) END),
            (3, 'steps', b.steps, b.spent_steps, COALESCE((asked->>'steps')::numeric, 0)),
            (4, 'seconds', b.seconds::numeric, extract(epoch FROM clock_timestamp() - e.started_at), 0)
        ) AS f (nth, what, most, spent, asked)
        WHERE f.spent + f.asked > f.most OR f.most IS NOT NULL AND f.asked IS NULL
        ORDER BY u.n, f.nth LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT COALESCE(sum(CASE tight.what WHEN 'tokens' THEN r.tokens WHEN 'dollars' THEN r.microdollars / 1000000.0 END), 0)
        INTO held FROM reservations r
        JOIN task_status s ON s.task_id = r.task_id
        WHERE r.budget_task_id = tight.task_id AND r.settled_at IS NULL
          AND (s.state = 'running' AND s.claim = r.claim OR minion_is_batched(r.task_id, r.step, r.claim));
    RETURN jsonb_build_object(
        'budget', tight.task_id, 'agent', tight.agent_name, 'what', tight.what, 'limit', trim_scale(tight.most),
        'spent', trim_scale(round(tight.spent - held, 6)), 'reserved', trim_scale(held),
        'asked', trim_scale(tight.asked), 'step', asked, 'at', tight.changed_at,
        'then', CASE WHEN tight.asked IS NULL THEN 'fail'
                     WHEN tight.spent - held + tight.asked <= tight.most THEN 'wait' ELSE tight.on_breach END);
END $$;

CREATE FUNCTION minion_budget_for(request jsonb, version uuid) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    found jsonb := NULLIF(request->'budget', 'null'::jsonb);
BEGIN
    IF found IS NULL AND request->>'replay_of' IS NOT NULL THEN
        SELECT jsonb_build_object('tokens', b.tokens, 'dollars', b.microdollars / 1000000.0, 'steps', b.steps,
                                  'seconds', b.seconds, 'on_breach', b.on_breach)
            INTO found FROM budgets b WHERE b.task_id = (request->>'replay_of')::uuid;
    END IF;
    IF found IS NULL THEN
        SELECT v.definition->'config'->'budget' INTO found FROM agent_versions v WHERE v.id = version;
    END IF;
    RETURN NULLIF(found, 'null'::jsonb);
END $$;

CREATE FUNCTION minion_budget_of(t uuid) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object(
            'on_breach', b.on_breach,
            'tokens', jsonb_build_object('limit', b.tokens, 'spent', b.spent_tokens - h.tokens, 'reserved', h.tokens),
            'dollars', jsonb_build_object('limit', trim_scale(b.microdollars / 1000000.0),
                'spent', trim_scale((b.spent_microdollars - h.microdollars) / 1000000.0),
                'reserved', trim_scale(h.microdollars / 1000000.0)),
            'steps', jsonb_build_object('limit', b.steps, 'spent', b.spent_steps),
            -- Negative while a clock that was put back catches up.
            'seconds', jsonb_build_object('limit', b.seconds, 'spent', round(GREATEST(COALESCE(extract(
                epoch FROM COALESCE(o.finished_at, clock_timestamp()) - e.started_at), 0), 0), 3)))
        FROM budgets b LEFT JOIN executions e ON e.task_id = b.task_id AND e.claim = 1
        LEFT JOIN task_outcomes o ON o.task_id = b.task_id
        CROSS JOIN LATERAL (
            SELECT COALESCE(sum(r.tokens), 0) AS tokens, COALESCE(sum(r.microdollars), 0) AS microdollars
                FROM reservations r JOIN task_status s ON s.task_id = r.task_id
                WHERE r.budget_task_id = b.task_id AND r.settled_at IS NULL
                  AND (s.state = 'running' AND s.claim = r.claim OR minion_is_batched(r.task_id, r.step, r.claim))) h
        WHERE b.task_id = t
$$;

CREATE FUNCTION minion_canary_for(request jsonb, active uuid) RETURNS TABLE(version_id uuid, share integer, same_input boolean)
    LANGUAGE sql STABLE
    AS $$
    SELECT c.version_id, c.share,
           NULLIF(v.input_schema, 'null'::jsonb) IS NOT DISTINCT FROM NULLIF(b.input_schema, 'null'::jsonb)
        FROM canaries c JOIN agent_versions v ON v.id = c.version_id JOIN agent_versions b ON b.id = c.baseline_id
        WHERE c.baseline_id = active AND c.ended_at IS NULL AND request->>'agent_version_id' IS NULL
          AND COALESCE(request->>'capability' = ANY (v.capabilities), true)
$$;

CREATE FUNCTION minion_change_budget(t uuid, extra jsonb, stop boolean) RETURNS uuid
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    owner uuid;
    missing text;
BEGIN
    SELECT COALESCE(e.error->>'budget', b.task_id::text)::uuid INTO owner
        FROM task_status s LEFT JOIN budgets b ON b.task_id = s.task_id
        LEFT JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim AND s.wait_reason = 'budget'
        WHERE s.task_id = t;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    ELSIF owner IS NULL THEN
        RAISE EXCEPTION 'The task % does not have its own budget, and does not wait for one.', t USING ERRCODE = 'MN009';
    ELSIF EXISTS (SELECT 1 FROM task_outcomes o WHERE o.task_id = owner) THEN
        RAISE EXCEPTION 'The task % has ended: a change of its budget has no effect.', owner USING ERRCODE = 'MN009';
    END IF;
    SELECT x.name INTO missing FROM budgets b, LATERAL (VALUES ('tokens', b.tokens::numeric), ('dollars', b.microdollars),
            ('steps', b.steps), ('seconds', b.seconds)) AS x (name, most)
        WHERE b.task_id = owner AND x.most IS NULL
          AND COALESCE(extra->>CASE x.name WHEN 'dollars' THEN 'microdollars' ELSE x.name END, '0')::numeric <> 0 LIMIT 1;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'The budget of task % has no limit in %, so there is nothing to raise.', owner, missing
            USING ERRCODE = 'MN009';
    END IF;
    -- A separate statement: values computed before it waits for a lock would be out of date.
    PERFORM minion_lock_budgets(ARRAY[owner]);
    UPDATE budgets b SET
            tokens = b.tokens + COALESCE((extra->>'tokens')::bigint, 0),
            microdollars = b.microdollars + COALESCE((extra->>'microdollars')::bigint, 0),
            steps = b.steps + COALESCE((extra->>'steps')::bigint, 0),
            seconds = n.seconds,
            due_at = b.due_at + (n.seconds - b.seconds) * interval '1 s',
            on_breach = CASE WHEN stop THEN 'fail' ELSE on_breach END,
            changed_at = clock_timestamp()
        FROM (SELECT o.task_id, CASE WHEN extra->>'seconds' IS NULL THEN o.seconds
                     ELSE GREATEST(o.seconds, extract(epoch FROM clock_timestamp() - e.started_at))
                          + (extra->>'seconds')::double precision END AS seconds
                  FROM budgets o LEFT JOIN executions e ON e.task_id = o.task_id AND e.claim = 1) AS n
        WHERE b.task_id = owner AND n.task_id = owner;
    PERFORM minion_wake_funded(1000, owner);
    RETURN owner;
END $$;

CREATE FUNCTION minion_check_approver(s steps, policy jsonb, verdict text, approver jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    required jsonb := minion_required(policy, CASE jsonb_typeof(approver->'rules') WHEN 'array' THEN ARRAY(
        SELECT jsonb_array_elements_text(approver->'rules')::integer) END);
    who record;
BEGIN
    IF approver IS NULL THEN
        RAISE EXCEPTION 'Step % (%) has an approval policy: % may decide about it, through an orchestrator of release 0.3 '
            'or later.', s.number, s.name, minion_approvers(required) USING ERRCODE = 'MN009';
    ELSIF approver->>'key' = 'bootstrap' THEN
        SELECT 'bootstrap' AS id, 'bootstrap' AS name, 'admin' AS role INTO who;
    ELSIF approver->>'key' LIKE 'user:%' THEN
        SELECT approver->>'key' AS id, approver->>'name' AS name, approver->>'role' AS role INTO who;
    ELSE
        SELECT k.id::text AS id, k.name, k.role INTO who FROM api_keys k
            WHERE k.id = (approver->>'key')::uuid AND k.revoked_at IS NULL AND COALESCE(k.expires_at > now(), true);
    END IF;
    IF who.id IS NULL THEN
        RAISE EXCEPTION 'The API key was revoked, or has expired.' USING ERRCODE = 'MN010';
    ELSIF EXISTS (
            SELECT FROM jsonb_array_elements(required->'approvers') AS a (one)
                WHERE NOT (a.one->'roles' ? who.role OR a.one->'keys' ?| ARRAY[who.name, who.id])) THEN
        RAISE EXCEPTION 'The key % (role %) may not decide about step %, %. Its approval policy names %.', who.name,
            who.role, s.number, s.name, minion_approvers(required) USING ERRCODE = 'MN010';
    ELSIF verdict = 'approve' AND required->'not_submitter' = 'true' AND who.id = ANY (
            COALESCE((SELECT submitter_keys FROM tasks WHERE id = s.task_id), '{}')) THEN
        RAISE EXCEPTION 'The key % submitted this task, and so may not approve step %, %. Its approval policy names %.',
            who.name, s.number, s.name, minion_approvers(required) USING ERRCODE = 'MN010';
    END IF;
    RETURN required;
END $$;

CREATE FUNCTION minion_check_budget(given jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    fault text;
BEGIN
    IF jsonb_typeof(given) <> 'object' THEN
        RAISE EXCEPTION 'budget must be an object such as {"dollars": 0.5, "on_breach": "ask"}.' USING ERRCODE = 'MN007';
    END IF;
    SELECT format('budget.%s is %s: %s', left(m.name, 100), left(m.value::text, 100),
                  CASE WHEN k.most IS NULL THEN 'a budget must have only tokens, dollars, steps, seconds and on_breach (ask or fail)'
                       ELSE format('it must be a%s number above 0, at most %s', CASE WHEN k.whole THEN ' whole' ELSE '' END, k.most)
                  END) INTO fault
        FROM jsonb_each(given) AS m (name, value)
        LEFT JOIN (VALUES ('tokens', 1000000000000, true), ('dollars', 1000000000, false), ('steps', 1000000000, true),
                          ('seconds', 1000000000, false)) AS k (name, most, whole) ON k.name = m.name
        WHERE m.value <> 'null' AND CASE
            WHEN m.name = 'on_breach' THEN m.value NOT IN ('"ask"', '"fail"')
            WHEN k.name IS NULL OR jsonb_typeof(m.value) <> 'number' THEN true
            ELSE m.value::numeric NOT BETWEEN 0.000001 AND k.most OR k.whole AND m.value::numeric % 1 <> 0 END
        LIMIT 1;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION '%.', fault USING ERRCODE = 'MN007';
    ELSIF jsonb_strip_nulls(given) - 'on_breach' = '{}' THEN
        RAISE EXCEPTION 'A budget must limit something: tokens, dollars, steps or seconds.' USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE FUNCTION minion_check_depth(parent uuid) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    child_depth integer;
    offender record;
BEGIN
    SELECT depth + 1 INTO child_depth FROM tasks WHERE id = parent;
    WITH RECURSIVE lineage AS (
        SELECT id, parent_id, depth, agent_version_id FROM tasks WHERE id = parent
        UNION ALL
        SELECT t.id, t.parent_id, t.depth, t.agent_version_id FROM tasks t JOIN lineage l ON t.id = l.parent_id
    )
    SELECT v.name, (v.definition->'config'->>'max_chain_depth')::integer AS most INTO offender
        FROM lineage l JOIN agent_versions v ON v.id = l.agent_version_id
        WHERE child_depth - l.depth > (v.definition->'config'->>'max_chain_depth')::integer
        ORDER BY l.depth LIMIT 1;
    IF offender.name IS NOT NULL THEN
        RAISE EXCEPTION 'The chain below the agent % would be deeper than its max_chain_depth of %. '
            'Look for agents that call each other in a circle, or raise the limit.',
            quote_literal(offender.name), offender.most USING ERRCODE = 'MN007';
    END IF;
    RETURN child_depth;
END $$;

CREATE FUNCTION minion_check_edited_approval(s steps, new uuid, policy jsonb, approver jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    required jsonb;
BEGIN
    -- The keys that submitted the replay are those of the original, and the one that edits.
    s.task_id := new;
    required := minion_check_approver(s, policy, 'approve', approver);
    IF (required->>'people')::integer > 1 THEN
        RAISE EXCEPTION 'Step % (%) must be approved by % different keys, so a replay cannot set its arguments. Replay from '
            'step % without an edit: the new task asks for the approvals.', s.number, s.name, required->'people', s.number
            USING ERRCODE = 'MN010';
    END IF;
END $$;

CREATE FUNCTION minion_check_json(value jsonb, what text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
DECLARE
    body text := value::text;
    most integer := COALESCE(NULLIF(current_setting('minion.max_input_bytes', true), '')::integer, 1048576);
BEGIN
    IF octet_length(body) > most THEN
        RAISE EXCEPTION '% is % bytes large; at most % are accepted. '
            'Store large data elsewhere and pass a reference to it.', what, octet_length(body), most
            USING ERRCODE = 'MN006';
    END IF;
    IF octet_length(body) > 200 AND jsonb_path_exists(value, '$.**{101}') THEN
        RAISE EXCEPTION '% is nested deeper than 100 levels.', what USING ERRCODE = 'MN007';
    END IF;
    IF body ~ '[0-9]{150}' AND jsonb_path_exists(
            value, '$.** ? (@.type() == "number" && (@ >= 1e300 || @ <= -1e300))') THEN
        RAISE EXCEPTION '% holds a number of more than 300 digits.', what USING ERRCODE = 'MN007';
    END IF;
END $_$;

CREATE FUNCTION minion_check_reach(request jsonb, agents text[]) RETURNS void
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    ns text := COALESCE(request->>'namespace', 'default');
    talk text := request->>'conversation_id';
    once text := request->>'idempotency_key';
    alone text := request->>'unique_key';
BEGIN
    IF agents = '{}' THEN
        RETURN;
    END IF;
    -- Messages outlive their tasks: if none of the tasks is left, nothing shows whose they are.
    IF talk IS NOT NULL AND (
            SELECT COALESCE(bool_or(COALESCE(t.agent_name <> ALL (agents), true)), EXISTS (
                       SELECT FROM messages m WHERE m.namespace = ns AND m.conversation_id = talk))
                FROM tasks t WHERE t.namespace = ns AND t.conversation_id = talk AND t.parent_id IS NULL) THEN
        RAISE EXCEPTION 'The conversation has tasks of agents that this submitter may not use, so it must not add one to it.'
            USING ERRCODE = 'MN009';
    ELSIF EXISTS (
            SELECT FROM tasks t WHERE COALESCE(t.agent_name <> ALL (agents), true) AND t.id IN (
                SELECT i.task_id FROM idempotency_keys i WHERE i.namespace = ns AND i.key = once
                UNION ALL
                SELECT u.task_id FROM unique_tasks u WHERE u.namespace = ns AND u.key = alone)) THEN
        RAISE EXCEPTION 'A task of an agent that this submitter may not use has the same idempotency key or unique key. '
            'Choose another.' USING ERRCODE = 'MN009';
    END IF;
END $$;

CREATE FUNCTION minion_check_request(request jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $_$
DECLARE
    fault record;
    labels jsonb := NULLIF(request->'labels', 'null'::jsonb);
    messages jsonb := NULLIF(request->'messages', 'null'::jsonb);
BEGIN
    IF char_length(request->>'agent') > 200 OR char_length(request->>'capability') > 200
            OR char_length(request->>'idempotency_key') NOT BETWEEN 1 AND 255
            OR char_length(request->>'key') NOT BETWEEN 1 AND 255
            OR char_length(request->>'conversation_id') NOT BETWEEN 1 AND 255
            OR char_length(request->>'namespace') NOT BETWEEN 1 AND 100 THEN
        SELECT f.name, char_length(request->>f.name) AS size, f.most INTO fault
            FROM (VALUES ('agent', 0, 200), ('capability', 0, 200), ('idempotency_key', 1, 255), ('key', 1, 255),
                         ('conversation_id', 1, 255), ('namespace', 1, 100)) AS f (name, least, most)
            WHERE char_length(request->>f.name) NOT BETWEEN f.least AND f.most LIMIT 1;
        RAISE EXCEPTION '% has % characters; 1 to % are accepted.', fault.name, fault.size, fault.most
            USING ERRCODE = 'MN007';
    ELSIF request->>'traceparent' !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION 'traceparent must have the format of W3C Trace Context.' USING ERRCODE = 'MN007';
    ELSIF (request->>'priority')::numeric NOT BETWEEN -100 AND 100 THEN
        RAISE EXCEPTION 'priority is %; -100 to 100 are accepted.', request->>'priority' USING ERRCODE = 'MN007';
    ELSIF (request->>'run_at')::timestamptz NOT BETWEEN '1970-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'run_at must be a time between the years 1970 and 9999.' USING ERRCODE = 'MN007';
    ELSIF (request->>'deadline')::timestamptz NOT BETWEEN '1970-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'deadline must be a time between the years 1970 and 9999.' USING ERRCODE = 'MN007';
    END IF;
    IF request->>'lane' NOT IN ('direct', 'batch', 'auto') THEN
        RAISE EXCEPTION 'lane is %; it must be direct, batch or auto.', quote_literal(left(request->>'lane', 100))
            USING ERRCODE = 'MN007';
    END IF;
    IF labels IS NOT NULL THEN
        IF jsonb_typeof(labels) <> 'object' OR octet_length(labels::text) > 65536
                OR jsonb_path_exists(labels, 'strict $.* ? (@.type() != "string")') THEN
            RAISE EXCEPTION 'labels must be an object whose values are text, of at most 64 KB.' USING ERRCODE = 'MN007';
        END IF;
    END IF;
    IF messages IS NOT NULL AND NOT minion_are_messages(messages) THEN
        RAISE EXCEPTION 'messages must be a list of 1 to 1000 objects, each with `role` (user, assistant or system) '
            'and `content` (text, or a list of blocks).' USING ERRCODE = 'MN007';
    END IF;
    PERFORM minion_check_json(request->'input', 'The input');
    PERFORM minion_check_json(request->'messages', 'The list of messages');
    IF (request->>'deadline')::timestamptz <= (request->>'run_at')::timestamptz THEN
        RAISE EXCEPTION 'run_at must be before deadline, or the task could never run.' USING ERRCODE = 'MN007';
    END IF;
END $_$;

CREATE FUNCTION minion_check_transition() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state NOT IN ('scheduled', 'pending') THEN
            RAISE EXCEPTION 'a task cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NOT minion_transition_allowed(OLD.state, NEW.state) THEN
        RAISE EXCEPTION 'a task cannot go from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION minion_claim(t uuid, expected integer, w uuid, granted boolean) RETURNS jsonb
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    now_at task_status;
    obstacle jsonb;
    secret bytea;
BEGIN
    UPDATE task_status SET state = 'running', claim = claim + 1, worker_id = w, updated_at = now()
        WHERE task_id = t AND state = 'queued' AND claim = expected AND (deadline IS NULL OR deadline > now())
          AND EXISTS (SELECT 1 FROM workers WHERE id = w AND status = 'online')
          AND NOT EXISTS (SELECT 1 FROM pauses) AND NOT EXISTS (SELECT 1 FROM limits WHERE scope <> 'model')
          AND conversation_id IS NULL
        RETURNING * INTO now_at;
    IF NOT FOUND THEN
        SELECT * INTO now_at FROM task_status
            WHERE task_id = t AND state = 'queued' AND claim = expected AND (deadline IS NULL OR deadline > now())
              AND EXISTS (SELECT 1 FROM workers WHERE id = w AND status = 'online')
            FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        obstacle := minion_obstacle(now_at, granted);
        IF obstacle IS NOT NULL THEN
            IF obstacle->>'kind' <> 'rate' THEN
                UPDATE task_status SET state = 'pending', updated_at = now(),
                                       rank = CASE WHEN obstacle->>'kind' = 'turn' THEN minion_parked() ELSE rank END
                    WHERE task_id = t;
            END IF;
            RETURN jsonb_build_object('refused', obstacle);
        END IF;
        UPDATE task_status SET state = 'running', claim = claim + 1, worker_id = w, updated_at = now()
            WHERE task_id = t RETURNING * INTO now_at;
    END IF;
    IF now_at.claim = 1 THEN
        DELETE FROM unique_tasks WHERE task_id = t AND held_while = 'pending';
    END IF;
    -- Each half has 122 random bits from the system's source.
    INSERT INTO executions (task_id, claim, worker_id, stream_key)
        VALUES (t, now_at.claim, w, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
        RETURNING stream_key INTO secret;
    RETURN (SELECT to_jsonb(k) || jsonb_build_object(
        'claim', now_at.claim, 'worker_id', w, 'attempts', now_at.attempts, 'queue', now_at.capability,
        'stream_key', encode(secret, 'hex'),
        -- Minions derive idempotency keys from it.
        'origin_id', COALESCE(k.effect_origin, k.origin_id),
        -- A replay from a step begins with the copied steps.
        'steps', CASE WHEN now_at.claim > 1 OR k.from_step IS NOT NULL THEN minion_journal(t) ELSE '[]'::jsonb END)
        FROM tasks k WHERE k.id = t);
END $$;

CREATE FUNCTION minion_claim_pack(pack jsonb, w uuid) RETURNS SETOF jsonb
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    -- Whatever plan is cached, each table is read by its key.
    ids uuid[] := ARRAY(SELECT (e->>'task')::uuid FROM jsonb_array_elements(pack) AS e);
BEGIN
    RETURN QUERY WITH free AS (
        SELECT s.task_id FROM jsonb_array_elements(pack) AS e
                JOIN task_status s ON s.task_id = (e->>'task')::uuid AND s.claim = (e->>'claim')::integer
                JOIN tasks k ON k.id = s.task_id
            WHERE s.task_id = ANY (ids) AND k.id = ANY (ids)
              AND s.state = 'queued' AND (s.deadline IS NULL OR s.deadline > now()) AND s.conversation_id IS NULL
              AND COALESCE(pg_column_size(k.input), 0) + COALESCE(pg_column_size(k.messages), 0) < 16384
              AND EXISTS (SELECT 1 FROM workers WHERE id = w AND status = 'online')
              AND NOT EXISTS (SELECT 1 FROM pauses) AND NOT EXISTS (SELECT 1 FROM limits WHERE scope <> 'model')
            ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED
    ), claimed AS (
        UPDATE task_status s SET state = 'running', claim = s.claim + 1, worker_id = w, updated_at = now()
            FROM free WHERE s.task_id = free.task_id AND s.task_id = ANY (ids)
            RETURNING s.task_id, s.claim, s.attempts, s.capability
    ), released AS (
        DELETE FROM unique_tasks u USING claimed c
            WHERE u.task_id = c.task_id AND u.task_id = ANY (ids) AND c.claim = 1 AND u.held_while = 'pending'
    ), begun AS (
        INSERT INTO executions (task_id, claim, worker_id, stream_key)
            SELECT c.task_id, c.claim, w, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) FROM claimed c
            RETURNING task_id, stream_key
    )
    SELECT to_jsonb(k) || jsonb_build_object(
            'claim', c.claim, 'worker_id', w, 'attempts', c.attempts, 'queue', c.capability,
            'stream_key', encode(b.stream_key, 'hex'), 'origin_id', COALESCE(k.effect_origin, k.origin_id),
            'steps', CASE WHEN c.claim > 1 OR k.from_step IS NOT NULL THEN minion_journal(k.id) ELSE '[]'::jsonb END)
        FROM claimed c JOIN begun b ON b.task_id = c.task_id JOIN tasks k ON k.id = c.task_id AND k.id = ANY (ids);
END $$;

CREATE FUNCTION minion_claim_remote(most integer, each integer, busy jsonb, hold interval) RETURNS SETOF remote_calls
    LANGUAGE sql
    SET jit TO 'off'
    AS $$
    WITH servers AS MATERIALIZED (
        SELECT DISTINCT r.namespace, r.server FROM remote_calls r
            WHERE r.due_at <= now() AND r.remote_id IS NOT NULL AND r.state IN ('working', 'input_required', 'cancelling')
    ), chosen AS MATERIALIZED (
        SELECT d.task_id, d.step FROM servers s CROSS JOIN LATERAL (
            SELECT r.task_id, r.step, r.due_at FROM remote_calls r
                WHERE r.due_at <= now() AND r.remote_id IS NOT NULL
                  AND r.state IN ('working', 'input_required', 'cancelling')
                  AND r.namespace = s.namespace AND r.server = s.server
                ORDER BY r.due_at
                LIMIT GREATEST(0, each - COALESCE((busy->>(s.namespace || '/' || s.server))::integer, 0))
                FOR NO KEY UPDATE SKIP LOCKED) d
            ORDER BY d.due_at LIMIT most
    )
    UPDATE remote_calls r SET due_at = now() + hold FROM chosen c
        WHERE r.task_id = c.task_id AND r.step = c.step RETURNING r.*
$$;

CREATE FUNCTION minion_claims_only_grow() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'a claim number must not decrease (% to %)', OLD.claim, NEW.claim
        USING ERRCODE = 'check_violation';
END $$;

CREATE FUNCTION minion_close_execution(t uuid, c integer, how text, result jsonb) RETURNS void
    LANGUAGE sql
    AS $$
    UPDATE executions SET
        outcome = how, finished_at = now(), error = NULLIF(result->'error', 'null'::jsonb),
        cpu_seconds = (result->>'cpu_seconds')::double precision,
        peak_memory_bytes = (result->>'peak_memory_bytes')::bigint,
        input_tokens = COALESCE((result->>'input_tokens')::bigint, 0),
        output_tokens = COALESCE((result->>'output_tokens')::bigint, 0),
        cost_microdollars = COALESCE((result->>'cost_microdollars')::bigint, 0)
    WHERE task_id = t AND claim = c AND outcome = 'running'
$$;

CREATE FUNCTION minion_cluster() RETURNS bigint
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system());
EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported THEN
    RETURN NULL;
END $$;

CREATE FUNCTION minion_count_down(t uuid, over integer) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    now_at text;
BEGIN
    UPDATE task_status SET
            open_waits = GREATEST(0, open_waits - over),
            state = CASE WHEN open_waits <= over THEN 'pending' ELSE state END,
            wait_reason = CASE WHEN open_waits > over THEN minion_waits_for(t) END,
            due_at = CASE WHEN open_waits > over THEN (
                SELECT min(w.due_at) FROM steps w WHERE w.task_id = t AND w.kind = 'wait' AND w.status = 'started') END,
            updated_at = now()
        WHERE task_id = t AND state = 'waiting' AND open_waits > 0
        RETURNING state INTO now_at;
    IF now_at = 'pending' THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN COALESCE(now_at = 'pending', false);
END $$;

CREATE FUNCTION minion_custom_id(t uuid, step integer, c integer, attempt integer) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT concat_ws('_', replace(t::text, '-', ''), step, c, attempt)
$$;

CREATE FUNCTION minion_decide(t uuid, step_number integer, verdict text, content jsonb, reason text, who text) RETURNS text
    LANGUAGE sql
    AS $$
    SELECT minion_decide_v2(t, step_number, NULL, verdict, content, NULL, reason, who, NULL)->>'state'
$$;

CREATE FUNCTION minion_decide_v2(t uuid, step_number integer, proposal text, verdict text, content jsonb, content_order jsonb, reason text, who text, approver jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    now_at task_status;
    asked steps;
    waits text;
    value jsonb := content;
    value_order jsonb := content_order;
    decided jsonb := jsonb_build_object('verdict', verdict, 'reason', reason, 'by', who, 'at', now());
    policy jsonb;
    required jsonb;
    given jsonb;
    done boolean := true;
    proposed boolean;
BEGIN
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    END IF;
    SELECT * INTO asked FROM minion_undecided(t) u
        WHERE (step_number IS NULL OR u.number = step_number) AND (proposal IS NULL OR minion_proposal(u) = proposal)
        LIMIT 1;
    IF asked.number IS NULL THEN
        SELECT string_agg(format('step %s (%s, proposal %s)', u.number, u.name, minion_proposal(u)), ', ') INTO waits
            FROM minion_undecided(t) u;
        IF waits IS NULL THEN
            RAISE EXCEPTION 'Task % (%) is not waiting for a decision%. `minion why %` shows what it waits for.', t, now_at.state,
                COALESCE(' about step ' || step_number, ' about proposal ' || proposal, ''), t USING ERRCODE = 'MN009';
        END IF;
        RAISE EXCEPTION 'Task % is not waiting for a decision about %. It is waiting for one about %.', t,
            concat_ws(', ', 'step ' || step_number, 'proposal ' || left(proposal, 64)), waits USING ERRCODE = 'MN009';
    END IF;
    proposed := asked.kind = 'wait' OR minion_asks(asked);
    IF proposed <> (verdict IN ('approve', 'reject')) THEN
        RAISE EXCEPTION 'The verdict on step % must be %.', asked.number,
            CASE WHEN proposed THEN 'approve or reject' ELSE 'result, again or fail' END USING ERRCODE = 'MN007';
    END IF;
    PERFORM minion_check_json(content, 'The value');
    IF verdict = 'approve' AND content IS NULL THEN
        value := COALESCE(asked.approvals->'arguments', CASE WHEN asked.kind = 'wait' THEN asked.input->'approval'
            ELSE (SELECT r.proposed FROM remote_calls r WHERE r.task_id = t AND r.step = asked.number) END);
        value_order := CASE WHEN asked.approvals ? 'arguments' THEN NULLIF(asked.approvals->'order', 'null')
                            ELSE asked.input_order END;
    END IF;
    policy := minion_approval_policy(asked);
    given := asked.approvals;
    IF policy IS NOT NULL THEN
        required := minion_check_approver(asked, policy, verdict, approver);
        IF approver->>'judged' IS DISTINCT FROM minion_proposal(asked) OR given->'edited' = 'true' AND proposal IS NULL THEN
            RAISE EXCEPTION 'The arguments of step % (%) were edited by an approver since they were proposed. `minion why %` '
                'shows them; a decision must name their proposal, %.', asked.number, asked.name, t, minion_proposal(asked)
                USING ERRCODE = 'MN009';
        END IF;
        IF verdict = 'approve' THEN
            given := minion_add_approval(asked, (required->>'people')::integer, value, value_order, jsonb_build_object(
                'key', approver->'key', 'by', who, 'at', now(), 'reason', reason));
            done := jsonb_array_length(given->'by') >= (required->>'people')::integer;
        END IF;
        decided := decided || jsonb_build_object('key', approver->'key', 'approvals', COALESCE(given->'by', '[]'));
    END IF;
    IF NOT done THEN
        UPDATE steps SET approvals = given WHERE task_id = t AND number = asked.number;
    ELSIF minion_asks(asked) THEN
        UPDATE steps SET approvals = given WHERE task_id = t AND number = asked.number;
        PERFORM minion_answer_remote(t, asked.number, jsonb_build_object(
            'verdict', verdict, 'value', value, 'decision', decided));
    ELSE
        DELETE FROM remote_calls WHERE task_id = t AND step = asked.number;
        UPDATE steps SET finished_at = now(), approvals = given,
                status = CASE WHEN verdict IN ('approve', 'result') THEN 'finished' ELSE 'failed' END,
                output = CASE verdict WHEN 'approve' THEN decided || jsonb_build_object('arguments', value)
                                      WHEN 'result' THEN value END,
                output_order = CASE WHEN verdict IN ('approve', 'result') THEN value_order END,
                usage = CASE WHEN asked.kind = 'wait' THEN usage ELSE jsonb_build_object('decision', decided) END,
                error = CASE verdict
                    WHEN 'reject' THEN jsonb_build_object('type', 'rejected', 'message',
                        format('%s was rejected%s.', asked.name, COALESCE(': ' || reason, '')), 'decision', decided)
                    WHEN 'fail' THEN jsonb_build_object('type', 'tool_error', 'message',
                        format('Step %s (%s) was interrupted and did not happen%s.', asked.number, asked.name,
                               COALESCE(': ' || reason, '')), 'decision', decided)
                    WHEN 'again' THEN jsonb_build_object('type', 'interrupted', 'message', 'It is retried.',
                        'retryable', true, 'decision', decided) END
            WHERE task_id = t AND number = asked.number;
        PERFORM minion_count_down(t, 1);
    END IF;
    RETURN jsonb_build_object(
        'state', (SELECT state FROM task_status WHERE task_id = t), 'step', asked.number, 'name', asked.name,
        'proposal', minion_proposal(asked), 'verdict', verdict, 'value', value, 'value_order', value_order,
        'approvals', CASE WHEN required IS NOT NULL THEN jsonb_array_length(COALESCE(given->'by', '[]')) END,
        'people', required->'people');
END $$;

CREATE FUNCTION minion_dispatch(lease interval, smallest_window integer) RETURNS TABLE(task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer, time_limit integer, priority smallint)
    LANGUAGE sql
    AS $$
    SELECT task_id, claim, queue, agent_name, soft_time_limit, time_limit, priority
        FROM minion_dispatch_v2(lease, smallest_window, '{}')
$$;

CREATE FUNCTION minion_dispatch_v2(lease interval, smallest_window integer, windows jsonb) RETURNS TABLE(task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer, time_limit integer, priority smallint, version_id uuid, has_model boolean)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    served record;
    taken record;
    limited boolean := EXISTS (SELECT 1 FROM limits WHERE scope <> 'model');
BEGIN
    IF limited THEN
        -- Tasks in flight must not change between counting and taking.
        PERFORM pg_advisory_xact_lock(hashtext('minion_dispatch'));
    END IF;
    FOR served IN
        SELECT c.name, sum(w.slots) AS slots FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - lease GROUP BY c.name
    LOOP
        CONTINUE WHEN NOT EXISTS (
            SELECT 1 FROM task_status p WHERE p.state = 'pending' AND p.capability = served.name);
        FOR taken IN SELECT * FROM minion_take(
            served.name,
            GREATEST(2 * served.slots, smallest_window, (windows->>served.name)::integer)::integer, limited)
        LOOP
            -- In a statement after the one that took the tasks: it also takes tasks that were committed after it began, and
            -- a join in it would leave those out.
            RETURN QUERY SELECT taken.task_id, taken.claim, taken.queue, taken.agent_name, taken.soft_time_limit,
                                taken.time_limit, taken.priority, v.id, v.type = 'agent'
                FROM tasks t JOIN agent_versions v ON v.id = t.agent_version_id WHERE t.id = taken.task_id;
        END LOOP;
    END LOOP;
END $$;

CREATE FUNCTION minion_drawn(salt uuid, unit text, share integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT (hashtextextended(salt::text || '/' || unit, 0) & 9223372036854775807) % 10000 < share
$$;

CREATE FUNCTION minion_effect_origin(parent uuid, step integer) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT encode(substring(sha256(convert_to(parent::text || '/' || step::text, 'UTF8')) FOR 16), 'hex')::uuid
$$;

CREATE FUNCTION minion_end_tree(t uuid, final text, failure jsonb) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    generation uuid[] := ARRAY[t];
    member uuid;
    state_now text;
    ended text;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM tasks WHERE id = t) THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    END IF;
    PERFORM minion_lock_parent(t);
    -- One generation after the other: locked tasks create no more children, so the next query finds them all.
    WHILE generation IS NOT NULL LOOP
        FOREACH member IN ARRAY generation LOOP
            SELECT state INTO state_now FROM task_status WHERE task_id = member FOR NO KEY UPDATE;
            ended := CASE WHEN member = t THEN final ELSE 'cancelled' END;
            IF state_now IN ('succeeded', 'failed', 'cancelled', 'expired') THEN
                CONTINUE;
            ELSIF state_now = 'running' AND ended = 'cancelled' THEN
                UPDATE task_status SET cancel_requested = true WHERE task_id = member;
            ELSE
                UPDATE executions SET outcome = ended, finished_at = now(), error = failure
                    WHERE task_id = member AND outcome = 'running';
                PERFORM minion_settle(member, ended, jsonb_build_object('error', failure));
            END IF;
        END LOOP;
        SELECT array_agg(id ORDER BY id) INTO generation FROM tasks WHERE parent_id = ANY (generation);
    END LOOP;
    RETURN (SELECT state FROM task_status WHERE task_id = t);
END $$;

CREATE FUNCTION minion_fail_overtime(t uuid, failure jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    now_at task_status;
BEGIN
    PERFORM minion_lock_parent(t);
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF now_at.state = 'queued' THEN
        RETURN false;
    END IF;
    IF now_at.state IN ('pending', 'running', 'waiting') THEN
        PERFORM minion_end_tree(t, 'failed', failure);
        UPDATE executions SET outcome = 'expired' WHERE task_id = t AND claim = now_at.claim AND now_at.state = 'running';
    END IF;
    UPDATE budgets SET due_at = NULL WHERE task_id = t;
    RETURN now_at.state IN ('pending', 'running', 'waiting');
END $$;

CREATE FUNCTION minion_fence(t uuid, c integer) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM 1 FROM task_status WHERE task_id = t AND claim = c AND state = 'running' FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;

CREATE FUNCTION minion_file_ids(messages jsonb, input jsonb) RETURNS SETOF text
    LANGUAGE sql IMMUTABLE
    AS $_$
    SELECT DISTINCT f.id FROM (
            SELECT jsonb_path_query(messages, 'lax $.**.source.file_id') #>> '{}'
            UNION ALL SELECT jsonb_path_query(input, 'lax $.**."$file"') #>> '{}') AS f (id)
        WHERE f.id ~ '^file_[0-9a-f]{64}$' ORDER BY f.id
$_$;

CREATE FUNCTION minion_fingerprint(error jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT left(encode(sha256(convert_to(COALESCE(error->>'type', '') || ':' || left(regexp_replace(left(
        COALESCE(error->>'message', ''), 10000),
        -- An apostrophe within a word begins no quotation; the letter of a Python literal (b'…') does not either.
        '(?<!\w)(?:[bruf]{1,2})?''[^'']*''|"[^"]*"|`[^`]*`|“[^”]*”|‘[^’]*’|„[^“”]*[“”]|‚[^‘’]*[‘’]'
        '|”[^”]*”|«[^»]*»|»[^«]*«|‹[^›]*›'
        -- A URL, an e-mail address, a path (a relative one if it ends with a file's extension), a word with a digit.
        '|[a-z][a-z0-9+.-]*://\S*[\w/]|[\w.%+-]+@[\w.-]*\w|(?<!\w)(?:~|\.{1,2})?(?:/[\w.@%+~-]+)+/?'
        '|(?:[\w.@%+~-]+/)+[\w@%+~-]*\.\w+|(?<!\w)(?:[a-z]:|\\)\\\S*\w'
        '|[\w-]*\d(?:[\w.,:-]*\w)?', '#', 'gi'), 500),
        'UTF8')), 'hex'), 16)
$$;

CREATE FUNCTION minion_finish(t uuid, c integer, final text, result jsonb) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    now_at record;
    late jsonb;
    owner record;
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    SELECT cancel_requested, deadline INTO now_at FROM task_status WHERE task_id = t;
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    IF now_at.cancel_requested THEN
        final := 'cancelled';
        result := result || '{"output": null, "error": {"type": "cancelled", "message": "Cancelled while it ran."}}';
    ELSIF now_at.deadline <= clock_timestamp() THEN
        late := jsonb_strip_nulls(jsonb_build_object('type', 'expired', 'cause', result->'error',
            'message', 'The task''s deadline passed before it was done.'));
        PERFORM minion_close_execution(t, c, 'expired', result || jsonb_build_object('error', late));
        RETURN minion_end_tree(t, 'expired', late);
    END IF;
    PERFORM minion_close_execution(t, c, final, result);
    PERFORM minion_settle(t, final, result);
    SELECT namespace, conversation_id INTO owner FROM tasks WHERE id = t;
    IF final = 'succeeded' AND owner.conversation_id IS NOT NULL AND result ? 'messages' THEN
        INSERT INTO conversations (namespace, id) VALUES (owner.namespace, owner.conversation_id)
            ON CONFLICT DO NOTHING;
        INSERT INTO messages (namespace, conversation_id, task_id, role, content)
            SELECT owner.namespace, owner.conversation_id, t, m.value->>'role', m.value->'content'
                FROM jsonb_array_elements(result->'messages') WITH ORDINALITY AS m (value, n) ORDER BY m.n;
    END IF;
    RETURN final;
END $$;

CREATE FUNCTION minion_finish_pack(ended jsonb) RETURNS SETOF uuid
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    ids uuid[] := ARRAY(SELECT (e->>'task')::uuid FROM jsonb_array_elements(ended) AS e);
    fenced uuid[];
    parents uuid[];
    parent record;
    member uuid;
BEGIN
    SELECT array_agg(DISTINCT k.parent_id ORDER BY k.parent_id) INTO parents
        FROM tasks k WHERE k.id = ANY (ids) AND k.parent_id IS NOT NULL;
    IF parents IS NOT NULL THEN
        PERFORM 1 FROM task_status WHERE task_id = ANY (parents) ORDER BY task_id FOR NO KEY UPDATE;
    END IF;
    SELECT array_agg(l.task_id) INTO fenced FROM (
        SELECT s.task_id FROM jsonb_array_elements(ended) AS e
                JOIN task_status s ON s.task_id = (e->>'task')::uuid AND s.claim = (e->>'claim')::integer
                JOIN tasks k ON k.id = s.task_id
            WHERE s.task_id = ANY (ids) AND k.id = ANY (ids)
              AND s.state = 'running' AND NOT s.cancel_requested AND k.conversation_id IS NULL
              AND (s.deadline IS NULL OR s.deadline > clock_timestamp())
            ORDER BY s.task_id FOR NO KEY UPDATE OF s) AS l;
    IF fenced IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, output,
                       output_order, error, stdout, usage, cost_microdollars, function_version_id, started_at,
                       finished_at)
    SELECT (e->>'task')::uuid, s.number, s.kind, s.name, s.status, COALESCE(s.effect, 'pure'), s.request_hash,
           (e->>'claim')::integer, s.input, s.input_order, s.output, s.output_order, s.error, s.stdout, s.usage,
           COALESCE(s.cost_microdollars, 0), s.function_version_id, COALESCE(s.started_at, now()), s.finished_at
        FROM jsonb_array_elements(ended) AS e, jsonb_to_recordset(e->'result'->'steps') AS s (
            number integer, kind text, name text, status text, effect text, request_hash text, input jsonb,
            input_order jsonb, output jsonb, output_order jsonb, error jsonb, stdout text, usage jsonb,
            cost_microdollars bigint, function_version_id uuid, started_at timestamptz, finished_at timestamptz)
        WHERE (e->>'task')::uuid = ANY (fenced)
    ON CONFLICT (task_id, number) DO UPDATE SET
        status = EXCLUDED.status, output = EXCLUDED.output, output_order = EXCLUDED.output_order,
        error = EXCLUDED.error, stdout = EXCLUDED.stdout,
        usage = EXCLUDED.usage, cost_microdollars = EXCLUDED.cost_microdollars, claim = EXCLUDED.claim,
        finished_at = EXCLUDED.finished_at
        WHERE steps.status IN ('started', 'failed');
    UPDATE executions x SET
            outcome = 'succeeded', finished_at = now(),
            -- All tasks of the pack were claimed at once. The later ones waited.
            started_at = LEAST(now(), GREATEST(
                x.started_at, clock_timestamp() - (e->>'seconds_ago')::double precision * interval '1 s')),
            cpu_seconds = (e->'result'->>'cpu_seconds')::double precision,
            peak_memory_bytes = (e->'result'->>'peak_memory_bytes')::bigint,
            input_tokens = COALESCE((e->'result'->>'input_tokens')::bigint, 0),
            output_tokens = COALESCE((e->'result'->>'output_tokens')::bigint, 0),
            cost_microdollars = COALESCE((e->'result'->>'cost_microdollars')::bigint, 0)
        FROM jsonb_array_elements(ended) AS e
        WHERE x.task_id = (e->>'task')::uuid AND x.claim = (e->>'claim')::integer AND x.outcome = 'running'
          AND x.task_id = ANY (fenced);
    UPDATE task_status SET state = 'succeeded', worker_id = NULL, wait_reason = NULL, due_at = NULL, open_waits = 0,
                           updated_at = now()
        WHERE task_id = ANY (fenced);
    INSERT INTO task_outcomes (task_id, state, output, output_sha256, output_order)
        SELECT (e->>'task')::uuid, 'succeeded', CASE WHEN NOT large THEN v.value END,
               CASE WHEN large THEN minion_store_content(v.value) END,
               CASE WHEN v.value <> 'null' THEN NULLIF(e->'result'->'output_order', 'null'::jsonb) END
            FROM jsonb_array_elements(ended) AS e, LATERAL (SELECT e->'result'->'output' AS value) AS v,
                LATERAL (SELECT octet_length(v.value::text) > 65536 AS large) AS l
            WHERE (e->>'task')::uuid = ANY (fenced);
    DELETE FROM unique_tasks WHERE task_id = ANY (fenced);
    IF EXISTS (SELECT 1 FROM webhooks WHERE enabled) THEN
        FOREACH member IN ARRAY fenced LOOP
            PERFORM minion_owe_webhooks(member, 'succeeded');
        END LOOP;
    END IF;
    IF parents IS NOT NULL THEN
        UPDATE steps s SET status = 'finished', finished_at = now()
            FROM tasks k WHERE k.id = ANY (fenced) AND s.task_id = k.parent_id AND s.number = k.parent_step;
        FOR parent IN SELECT k.parent_id AS id, count(*)::integer AS n FROM tasks k
                WHERE k.id = ANY (fenced) AND k.parent_id IS NOT NULL GROUP BY 1 ORDER BY 1 LOOP
            PERFORM minion_count_down(parent.id, parent.n);
        END LOOP;
    END IF;
    RETURN QUERY SELECT unnest(fenced);
END $$;

CREATE FUNCTION minion_forget_remote(t uuid, c integer, number integer) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    IF minion_fence(t, c) THEN
        DELETE FROM remote_calls WHERE task_id = t AND step = number;
    END IF;
END $$;

CREATE FUNCTION minion_functions() RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$SELECT 1$$;

CREATE FUNCTION minion_gather_calls(most integer, largest bigint, age interval) RETURNS uuid
    LANGUAGE plpgsql
    SET jit TO 'off'
    AS $$
DECLARE
    ripe record;
    new_batch uuid;
    gathered integer;
BEGIN
    SELECT b.model, b.together INTO ripe FROM minion_sendable_calls() b GROUP BY b.model, b.together
        HAVING b.together IS NOT NULL OR count(*) >= most OR sum(b.bytes) >= largest OR min(b.created_at) <= now() - age
        ORDER BY min(b.created_at) LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO message_batches (model) VALUES (ripe.model) RETURNING id INTO new_batch;
    WITH oldest AS (
        SELECT b.task_id, b.step, b.bytes, b.created_at FROM minion_sendable_calls() b
            WHERE b.model = ripe.model AND b.together IS NOT DISTINCT FROM ripe.together
            ORDER BY b.created_at, b.task_id LIMIT LEAST(most, ripe.together)
    ), chosen AS (
        SELECT o.*, sum(o.bytes) OVER line AS total, row_number() OVER line AS nth FROM oldest o
            WINDOW line AS (ORDER BY o.created_at, o.task_id)
    )
    UPDATE batch_calls b SET batch = new_batch, error = NULL FROM chosen c
        WHERE b.task_id = c.task_id AND b.step = c.step AND b.batch IS NULL AND (c.total <= largest OR c.nth = 1);
    GET DIAGNOSTICS gathered = ROW_COUNT;
    IF gathered = 0 THEN
        -- Another orchestrator was faster.
        DELETE FROM message_batches WHERE id = new_batch;
        RETURN NULL;
    END IF;
    UPDATE message_batches SET calls = gathered WHERE id = new_batch;
    RETURN new_batch;
END $$;

CREATE FUNCTION minion_heal_clock() RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    moment timestamptz;
    ahead timestamptz;
    healed integer;
    changed integer;
BEGIN
    -- Waits here for a migration, not after the clock was read: right times would then lie in the future.
    -- In the migration's order.
    LOCK TABLE rate_holds, schedules, task_status, webhook_deliveries, workers IN ROW EXCLUSIVE MODE;
    moment := clock_timestamp();
    ahead := moment + interval '1 s';
    UPDATE workers SET last_seen = LEAST(last_seen, moment),
                       idle_since = CASE WHEN idle_since > moment THEN moment ELSE idle_since END
        WHERE status = 'online' AND (last_seen > ahead OR idle_since > ahead);
    GET DIAGNOSTICS healed = ROW_COUNT;

    UPDATE task_status SET queued_at = LEAST(queued_at, moment), published_at = LEAST(published_at, moment),
                           updated_at = LEAST(updated_at, moment)
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                WHERE s.state IN ('queued', 'running') AND (s.published_at > ahead OR s.updated_at > ahead)
                ORDER BY s.task_id FOR NO KEY UPDATE SKIP LOCKED);
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;

    -- A hold lasts until its limit permits one more task. One that is too long may go: the limiter makes another.
    DELETE FROM rate_holds h WHERE h.until_at > moment + interval '1 minute' AND NOT EXISTS (
        SELECT 1 FROM limits l WHERE l.namespace = h.namespace AND l.scope = h.scope AND l.name IN (h.name, '*')
            AND h.until_at <= moment + 2 * l.period_seconds / l.rate * interval '1 s');
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;
    IF changed > 0 THEN
        PERFORM minion_notify_pending();
    END IF;

    -- Not those with a cron expression, whose runs are times of the day. A schedule that cannot be read is set aside for
    -- five minutes.
    UPDATE schedules SET next_at = moment + interval_seconds * interval '1 s'
        WHERE id IN (
            SELECT c.id FROM schedules c
                WHERE c.enabled AND c.next_at > moment + (c.interval_seconds + 300) * interval '1 s'
                FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;

    UPDATE webhook_deliveries SET next_at = moment
        WHERE status = 'pending' AND attempts = 0 AND next_at > ahead;
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;
    IF changed > 0 THEN
        PERFORM pg_notify('minion_webhooks', '');
    END IF;
    RETURN healed;
END $$;

CREATE FUNCTION minion_heal_turns(most integer) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    woken integer;
BEGIN
    UPDATE task_status s SET rank = minion_rank(k.created_at, s.priority)
        FROM tasks k WHERE k.id = s.task_id AND s.task_id IN (
            SELECT p.task_id FROM task_status p JOIN (
                    SELECT DISTINCT ON (f.namespace, f.conversation_id) f.task_id, f.namespace, f.conversation_id
                        FROM task_status f WHERE f.state = 'pending' AND f.rank = minion_parked()
                        ORDER BY f.namespace, f.conversation_id, f.task_id) AS first ON first.task_id = p.task_id
                WHERE p.state = 'pending' AND p.rank = minion_parked()
                  AND minion_predecessor(first.task_id, first.namespace, first.conversation_id) IS NULL
                LIMIT most FOR NO KEY UPDATE OF p SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    DELETE FROM rate_holds WHERE until_at < now() - interval '1 minute';
    RETURN woken;
END $$;

CREATE FUNCTION minion_heal_waits(after uuid, most integer, OUT woken integer, OUT last uuid) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
DECLARE
    first uuid := COALESCE(after, '00000000-0000-0000-0000-000000000000');
    until uuid;
    early record;
BEGIN
    SELECT s.task_id INTO last FROM task_status s
        WHERE s.state = 'waiting' AND s.task_id > first ORDER BY s.task_id OFFSET most - 1 LIMIT 1;
    until := COALESCE(last, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
    FOR early IN
        SELECT s.task_id, s.updated_at - clock_timestamp() AS extra FROM task_status s
            WHERE s.state = 'waiting' AND s.task_id > first AND s.task_id <= until
              AND s.updated_at > clock_timestamp() + interval '1 s'
            ORDER BY s.task_id FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        UPDATE steps SET due_at = due_at - early.extra
            WHERE task_id = early.task_id AND kind = 'wait' AND status = 'started';
        UPDATE task_status SET due_at = due_at - early.extra, updated_at = updated_at - early.extra
            WHERE task_id = early.task_id;
    END LOOP;
    UPDATE task_status SET state = 'pending', wait_reason = NULL, open_waits = 0, due_at = NULL, updated_at = now()
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                WHERE s.state = 'waiting' AND s.task_id > first AND s.task_id <= until
                  AND s.updated_at < now() - interval '10 s'
                  AND (s.wait_reason IN ('subtask', 'signal', 'timer', 'approval', 'remote_task')
                       AND NOT EXISTS (SELECT 1 FROM remote_calls r WHERE r.task_id = s.task_id
                                         AND r.state IN ('working', 'input_required'))
                       AND NOT EXISTS (SELECT 1 FROM steps w WHERE w.task_id = s.task_id AND w.status = 'started'
                                         AND w.kind IN ('subtask', 'wait')
                                         AND w.task_id > first AND w.task_id <= until)
                       OR s.wait_reason = 'batch'
                       AND NOT EXISTS (SELECT 1 FROM batch_calls b WHERE b.task_id = s.task_id AND b.result IS NULL))
                FOR NO KEY UPDATE OF s SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
END $$;

CREATE FUNCTION minion_hold(t uuid, expected integer, rule_scope text, rule_name text, delay interval) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    ns text;
BEGIN
    UPDATE task_status SET state = 'pending', updated_at = now()
        WHERE task_id = t AND state = 'queued' AND claim = expected RETURNING namespace INTO ns;
    IF FOUND THEN
        INSERT INTO rate_holds AS h (namespace, scope, name, until_at) VALUES (ns, rule_scope, rule_name, now() + delay)
            ON CONFLICT (namespace, scope, name) DO UPDATE SET until_at = GREATEST(h.until_at, EXCLUDED.until_at);
    END IF;
END $$;

CREATE FUNCTION minion_hold_files_of_message() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO conversation_files (namespace, conversation_id, file_id)
        SELECT NEW.namespace, NEW.conversation_id, f.id FROM minion_file_ids(NEW.content, NULL) AS i (id)
            JOIN files f ON f.namespace = NEW.namespace AND f.id = i.id
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION minion_hold_files_of_task() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    ids text[] := ARRAY(SELECT minion_file_ids(NEW.messages, NEW.input));
BEGIN
    PERFORM minion_refuse_missing_files(NEW.namespace, ids);
    INSERT INTO task_files (task_id, namespace, file_id) SELECT NEW.id, NEW.namespace, i.id FROM unnest(ids) AS i (id)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION minion_hold_idempotency(ns text, k text, t uuid, asked jsonb, OUT task_id uuid, OUT request jsonb) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
BEGIN
    LOOP
        INSERT INTO idempotency_keys AS held (namespace, key, task_id, request) VALUES (ns, k, t, asked)
            ON CONFLICT DO NOTHING RETURNING held.task_id, held.request INTO task_id, request;
        EXIT WHEN FOUND;
        -- The key may be deleted, with its task, between the two statements.
        SELECT held.task_id, held.request INTO task_id, request FROM idempotency_keys held
            WHERE held.namespace = ns AND held.key = k;
        EXIT WHEN FOUND;
    END LOOP;
END $$;

CREATE FUNCTION minion_hold_keys(requests jsonb, ids uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql
    AS $$
DECLARE
    holders uuid[] := ids;
    asked record;
    earlier record;
    holder uuid;
BEGIN
    FOR asked IN
        SELECT n, COALESCE(request->>'namespace', 'default') AS ns, request->>'idempotency_key' AS key, jsonb_build_object(
                   'agent', request->'agent', 'capability', request->'capability', 'input', request->'input',
                   'messages', request->'messages', 'conversation_id', request->'conversation_id',
                   'key', request->'key') AS payload
            FROM jsonb_array_elements(requests) WITH ORDINALITY AS r (request, n)
            WHERE request->>'idempotency_key' IS NOT NULL ORDER BY ns, key, n
    LOOP
        SELECT * INTO earlier FROM minion_hold_idempotency(asked.ns, asked.key, ids[asked.n], asked.payload);
        IF earlier.task_id <> ids[asked.n] THEN
            IF earlier.request <> asked.payload THEN
                RAISE EXCEPTION 'The idempotency key % was used before with another payload (task %). '
                    'Use a new key for a new payload.', quote_literal(left(asked.key, 200)), earlier.task_id
                    USING ERRCODE = 'MN005';
            END IF;
            holders[asked.n] := earlier.task_id;
        END IF;
    END LOOP;
    FOR asked IN
        SELECT n, COALESCE(request->>'namespace', 'default') AS ns, request->>'unique_key' AS key,
               request->>'idempotency_key' AS idempotency, COALESCE(request->>'unique_while', 'running') AS held_while
            FROM ROWS FROM (jsonb_array_elements(requests), unnest(ids), unnest(holders))
                WITH ORDINALITY AS r (request, id, holder, n)
            WHERE request->>'unique_key' IS NOT NULL AND r.id = r.holder ORDER BY ns, key, n
    LOOP
        holder := minion_hold_unique(asked.ns, asked.key, ids[asked.n], asked.held_while);
        IF holder <> ids[asked.n] THEN
            UPDATE idempotency_keys SET task_id = holder WHERE namespace = asked.ns AND key = asked.idempotency;
            holders[asked.n] := holder;
        END IF;
    END LOOP;
    -- The new task of an earlier request with the same idempotency key may have found its unique key held.
    RETURN ARRAY(
        SELECT COALESCE(e.holder, h.holder) FROM unnest(holders) WITH ORDINALITY AS h (holder, n)
            LEFT JOIN unnest(ids, holders) AS e (id, holder) ON e.id = h.holder ORDER BY h.n);
END $$;

CREATE FUNCTION minion_hold_unique(ns text, k text, t uuid, held text) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
DECLARE
    holder uuid;
BEGIN
    IF char_length(k) NOT BETWEEN 1 AND 255 OR held NOT IN ('pending', 'running') THEN
        RAISE EXCEPTION 'unique_key must have 1 to 255 characters, and unique_while must be pending or running.'
            USING ERRCODE = 'MN007';
    END IF;
    LOOP
        INSERT INTO unique_tasks (namespace, key, task_id, held_while) VALUES (ns, k, t, held)
            ON CONFLICT DO NOTHING RETURNING task_id INTO holder;
        -- The key may be released between the two statements.
        EXIT WHEN holder IS NOT NULL;
        SELECT task_id INTO holder FROM unique_tasks WHERE namespace = ns AND key = k;
        EXIT WHEN holder IS NOT NULL;
    END LOOP;
    RETURN holder;
END $$;

CREATE FUNCTION minion_insert_tasks(requests jsonb) RETURNS TABLE(task_id uuid, created boolean)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $_$
#variable_conflict use_column
DECLARE
    ids uuid[] := ARRAY(SELECT minion_uuidv7() FROM generate_series(1, jsonb_array_length(requests)));
    holders uuid[] := ids;
    totals record;
BEGIN
    PERFORM minion_check_request(request) FROM jsonb_array_elements(requests) AS request;
    IF jsonb_path_exists(requests, '$[*] ? (@.idempotency_key != null || @.unique_key != null)') THEN
        holders := minion_hold_keys(requests, ids);
    END IF;

    WITH asked AS MATERIALIZED (
        SELECT r.n, r.id, r.request, COALESCE(request->>'namespace', 'default') AS ns,
               NULLIF(request->'messages', 'null'::jsonb) AS messages,
               (request->>'parent_id')::uuid AS parent, (request->>'replay_of')::uuid AS replayed,
               -- Sub-tasks do not wait for a predecessor.
               CASE WHEN request->>'parent_id' IS NULL THEN request->>'conversation_id' END AS talk,
               (request->>'run_at')::timestamptz AS begins, (request->>'deadline')::timestamptz AS ends,
               COALESCE((request->>'run_at')::timestamptz > now(), false) AS later,
               -- All that `minion_resolve` reads.
               jsonb_build_object(
                   'namespace', request->'namespace', 'agent', request->'agent', 'capability', request->'capability',
                   'agent_version_id', request->'agent_version_id',
                   'messages', CASE jsonb_typeof(request->'messages') WHEN 'array' THEN '[]'::jsonb END) AS named
            FROM ROWS FROM (jsonb_array_elements(requests), unnest(ids), unnest(holders))
                WITH ORDINALITY AS r (request, id, holder, n)
            -- The planner would expect a single row of the equality alone, and join the rest with nested loops.
            WHERE CASE WHEN r.id = r.holder THEN true END
    ), active AS MATERIALIZED (
        SELECT d.named, t.*, t.version_id AS active, c.version_id AS canary, c.share, c.same_input,
               false AS drawn
            FROM (SELECT named FROM asked GROUP BY named ORDER BY min(n)) AS d
            CROSS JOIN LATERAL minion_resolve(d.named) AS t
            LEFT JOIN LATERAL minion_canary_for(d.named, t.version_id) AS c ON true
    ), targets AS MATERIALIZED (
        SELECT t.*, (
                   SELECT NULLIF(v.definition->'config'->'budget', 'null'::jsonb) FROM agent_versions v
                       WHERE v.id = t.version_id) AS budget
            FROM (SELECT * FROM active
                  UNION ALL
                  SELECT b.named, t.*, b.active, b.canary, b.share, b.same_input, true FROM active b CROSS JOIN LATERAL
                      minion_resolve(b.named || jsonb_build_object('agent_version_id', b.canary)) AS t
                      WHERE b.canary IS NOT NULL) AS t
    ), talks AS MATERIALIZED (
        -- The others of a conversation have a predecessor: this task.
        SELECT ns, talk, min(n) AS first FROM asked WHERE talk IS NOT NULL AND NOT later GROUP BY ns, talk
    ), made AS MATERIALIZED (
        SELECT a.*, t.version_id, t.agent_name, p.id AS parent_id, p.root_id, p.depth, p.submitted_by, p.traceparent,
               p.priority AS parent_priority, p.rank AS parent_rank, p.budget_ids, o.origin_id,
               COALESCE(a.request->>'lane', p.lane, o.lane) AS lane,
               CASE WHEN o.journal_format = 3 THEN minion_refuse_replay(a.replayed)
                    WHEN p.journal_format = 3 OR a.request->'trial' = 'true' THEN 3 ELSE 1 END AS journal_format,
               COALESCE(a.n > k.first, false) AS follows,
               -- The preparer looks into messages further than PostgreSQL does.
               CASE WHEN a.request->>'validated' = t.version_id::text OR t.input_schema IS NULL AND a.messages IS NULL
                    THEN t.queue END AS queue,
               CASE WHEN a.replayed IS NULL THEN COALESCE(NULLIF(a.request->'budget', 'null'::jsonb), t.budget)
                    ELSE minion_budget_for(a.request, t.version_id) END AS budget,
               CASE WHEN a.replayed IS NULL THEN minion_effect_origin(p.effects, (a.request->>'parent_step')::integer)
                    WHEN a.request->'new_keys' = 'true' THEN a.id
                    ELSE o.effect_origin END AS effects,
               COALESCE(a.request->>'key', p.key) AS key,
               COALESCE(NULLIF(a.request->'labels', 'null'::jsonb), p.labels, '{}'::jsonb) AS labels,
               LEAST(a.ends, p.deadline) AS deadline,
               COALESCE((a.request->>'priority')::smallint, p.priority, 0) AS urgency,
               CASE WHEN a.replayed IS NOT NULL OR a.request->>'submitted_by' LIKE 'schedule:%'
                    THEN minion_submitters(a.request->>'submitted_by', a.request->>'submitter_key', a.ns,
                                           p.submitter_keys, o.submitter_keys)
                    WHEN p.submitter_keys IS NOT NULL THEN p.submitter_keys
                    WHEN a.request->>'submitter_key' IS NOT NULL THEN ARRAY[a.request->>'submitter_key']
                    -- Release 0.2 knows no other key.
                    WHEN COALESCE(a.request->>'submitted_by', p.submitted_by) ~ '^api(:|$)' THEN '{bootstrap}'
                    END AS submitter_keys
            FROM asked a LEFT JOIN talks k USING (ns, talk)
            -- With a limit, these are looked up for each task by its id, whatever the plan's estimates.
            LEFT JOIN LATERAL (
                SELECT t.*, COALESCE(t.effect_origin, t.origin_id) AS effects, s.priority, s.rank
                    FROM tasks t JOIN task_status s ON s.task_id = t.id WHERE t.id = a.parent LIMIT 1) AS p ON true
            LEFT JOIN LATERAL (
                SELECT origin_id, effect_origin, submitter_keys, lane, journal_format FROM tasks
                    WHERE id = a.replayed LIMIT 1) AS o ON true
            JOIN targets t ON t.named = a.named AND (t.canary IS NULL OR t.drawn = (
                a.replayed IS NULL AND a.request->'trial' IS DISTINCT FROM 'true' AND COALESCE(p.journal_format, 1) <> 3
                -- Only the caller can tell whether the canary accepts an input that the active version accepts.
                AND CASE a.request->>'validated' WHEN t.canary::text THEN true WHEN t.active::text THEN false
                    ELSE t.same_input AND minion_drawn(t.canary, COALESCE(
                        a.request->>'conversation_id', (SELECT r.conversation_id FROM tasks r WHERE r.id = p.root_id),
                        a.request->>'key', p.key, p.root_id::text, a.id::text), t.share) END))
            ORDER BY a.n
    ), stored AS (
        INSERT INTO tasks (id, namespace, agent_name, agent_version_id, capability, input, input_order, messages,
                           parent_id, parent_step, root_id, depth, replay_of, origin_id, effect_origin,
                           conversation_id, key, labels, submitted_by, traceparent, deadline, budget_ids, submitter_keys,
                           lane, journal_format)
            SELECT id, ns, agent_name, version_id, request->>'capability',
                   CASE WHEN request ? 'input' THEN request->'input' END,
                   NULLIF(request->'input_order', 'null'::jsonb), messages,
                   parent_id, (request->>'parent_step')::integer, COALESCE(root_id, id), COALESCE(depth + 1, 0), replayed,
                   COALESCE(origin_id, id), effects, request->>'conversation_id', key, labels,
                   COALESCE(request->>'submitted_by', submitted_by), COALESCE(request->>'traceparent', traceparent),
                   deadline, CASE WHEN budget IS NULL THEN budget_ids ELSE budget_ids || id END, submitter_keys, lane,
                   journal_format
                FROM made
    ), statuses AS (
        INSERT INTO task_status (task_id, state, capability, priority, due_at, deadline, namespace, agent_name, key,
                                 conversation_id, rank)
            SELECT id, CASE WHEN later THEN 'scheduled' ELSE 'pending' END, queue, urgency,
                   CASE WHEN later THEN begins END, deadline, ns, COALESCE(agent_name, ''), COALESCE(key, ''), talk,
                   -- Work that has begun comes first: a sub-task gets its parent's position.
                   CASE WHEN parent_id IS NOT NULL AND begins IS NULL
                        THEN parent_rank - (urgency - parent_priority)::bigint * 60000000
                        WHEN follows THEN minion_parked()
                        ELSE minion_place(id, ns, talk, GREATEST(begins, clock_timestamp()), urgency) END
                FROM made
    )
    SELECT array_agg(DISTINCT parent_id) FILTER (WHERE parent_id IS NOT NULL) AS parents,
           array_agg(id ORDER BY n) FILTER (WHERE budget IS NOT NULL) AS budgeted,
           array_agg(budget ORDER BY n) FILTER (WHERE budget IS NOT NULL) AS budgets
        INTO totals FROM made;
    PERFORM minion_check_depth(parent) FROM unnest(totals.parents) AS parent;
    IF totals.budgeted IS NOT NULL THEN
        PERFORM minion_open_budgets(totals.budgeted, totals.budgets);
    END IF;
    RETURN QUERY SELECT h.holder, h.holder = h.id FROM unnest(ids, holders) AS h (id, holder);
END $_$;

CREATE FUNCTION minion_is_batched(t uuid, number integer, c integer) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT EXISTS (SELECT 1 FROM batch_calls b
                       WHERE b.task_id = t AND b.step = number AND b.claim = c AND b.result IS NULL)
$$;

CREATE FUNCTION minion_journal(t uuid) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT COALESCE(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'number', s.number, 'kind', s.kind, 'name', s.name, 'status', s.status, 'effect', s.effect,
               'request_hash', s.request_hash, 'error', s.error, 'program', s.program, 'line', s.line,
               'child_id', CASE WHEN s.kind = 'subtask' THEN COALESCE(s.output->>'task_id', s.child_id::text) END))
           || jsonb_build_object('output', s.output, 'output_order', s.output_order)
           || CASE WHEN s.kind = 'subtask' AND s.copied_from IS NOT NULL THEN
                       jsonb_build_object('outcome', s.output || jsonb_build_object('output_order', s.output_order))
                   WHEN o.task_id IS NULL THEN '{}'::jsonb
                   ELSE jsonb_build_object('outcome', jsonb_build_object(
                       'state', o.state, 'output', COALESCE(o.output, c.value), 'output_order', o.output_order,
                       'error', o.error)) END
           ORDER BY s.number), '[]'::jsonb)
    FROM steps s LEFT JOIN task_outcomes o ON o.task_id = s.child_id LEFT JOIN contents c ON c.sha256 = o.output_sha256
    WHERE s.task_id = t
$$;

CREATE FUNCTION minion_keep_audit() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % must not be emptied', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE FUNCTION minion_keep_audit_row() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.position IS NULL AND NEW.position IS NOT NULL
            AND ROW(OLD.id, OLD.nonce, OLD.at, OLD.act, OLD.actor, OLD.key_prefix, OLD.claimed, OLD.address,
                    OLD.request_id, OLD.namespace, OLD.target, OLD.before::text, OLD.after::text, OLD.signature)
                IS NOT DISTINCT FROM
                ROW(NEW.id, NEW.nonce, NEW.at, NEW.act, NEW.actor, NEW.key_prefix, NEW.claimed, NEW.address,
                    NEW.request_id, NEW.namespace, NEW.target, NEW.before::text, NEW.after::text, NEW.signature) THEN
        RETURN NEW;
    ELSIF TG_OP = 'DELETE' AND OLD.position <= (SELECT e.position FROM audit_ends e WHERE e.name = 'start') THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only: its rows must not be changed or removed'
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE FUNCTION minion_keep_end() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO retried_steps (task_id, number, ended_in, claim, kind, name, status, usage, cost_microdollars,
                               function_version_id, started_at, finished_at)
        VALUES (OLD.task_id, OLD.number, OLD.ended_in, OLD.claim, OLD.kind, OLD.name, OLD.status, OLD.usage,
                OLD.cost_microdollars, OLD.function_version_id, OLD.started_at, OLD.finished_at)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION minion_keep_summary() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO conversation_summaries (namespace, conversation_id, through, summary, task_id)
        SELECT k.namespace, k.conversation_id, (NEW.output->>'through')::uuid, NEW.output->>'summary', k.id
            FROM tasks k JOIN conversations c ON c.namespace = k.namespace AND c.id = k.conversation_id
            WHERE k.id = NEW.task_id
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION minion_key_order(value json) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    WITH RECURSIVE parts (place, part) AS (
        SELECT '{}'::bigint[], value
        UNION ALL SELECT p.place || m.n, m.part FROM parts p CROSS JOIN LATERAL (
                SELECT o.value, o.n FROM json_each(CASE json_typeof(p.part) WHEN 'object' THEN p.part END)
                    WITH ORDINALITY AS o (key, value, n)
                UNION ALL
                SELECT a.value, a.n FROM json_array_elements(CASE json_typeof(p.part) WHEN 'array' THEN p.part END)
                    WITH ORDINALITY AS a (value, n)) AS m (part, n)
            WHERE json_typeof(m.part) IN ('object', 'array')
    ), objects AS (
        SELECT place, ARRAY(SELECT k.key FROM json_object_keys(part) WITH ORDINALITY AS k (key, n) ORDER BY n) AS keys
            FROM parts WHERE json_typeof(part) = 'object'
    ), orders AS (
        SELECT keys, own, row_number() OVER alike - 1 AS nth, count(*) OVER (PARTITION BY own) AS several FROM (
                SELECT keys, min(place) AS place,
                       ARRAY(SELECT k FROM unnest(keys) AS k ORDER BY octet_length(k), k COLLATE "C") AS own
                    FROM objects GROUP BY keys) AS found
            WINDOW alike AS (PARTITION BY own ORDER BY place)
    ), listed AS (SELECT * FROM orders WHERE several > 1 OR keys <> own)
    SELECT jsonb_build_object(
            'orders', jsonb_agg(to_jsonb(keys) ORDER BY own, nth),
            'choices', (SELECT COALESCE(jsonb_agg(l.nth ORDER BY o.place), '[]')
                            FROM objects o JOIN listed l USING (keys) WHERE l.several > 1))
        FROM listed HAVING count(*) > 0
$$;

CREATE FUNCTION minion_limit_inputs(most text DEFAULT ''::text) RETURNS text
    LANGUAGE plpgsql
    AS $$
DECLARE
    before text := COALESCE(current_setting('minion.max_input_bytes', true), '');
BEGIN
    PERFORM set_config('minion.max_input_bytes', most, true);
    RETURN before;
END $$;

CREATE FUNCTION minion_limits_of(ns text, cap text, agent text, k text) RETURNS TABLE(scope text, name text, rule text, max_running integer, rate integer, period_seconds double precision, burst integer)
    LANGUAGE sql STABLE
    AS $$
    SELECT DISTINCT ON (l.scope) l.scope, v.name, l.name, l.max_running, l.rate, l.period_seconds,
           GREATEST(1, l.rate / 10)
        FROM (VALUES ('capability', cap), ('agent', agent), ('key', k)) AS v (scope, name)
        JOIN limits l ON l.namespace = ns AND l.scope = v.scope AND l.name IN (v.name, '*')
        WHERE v.name <> '' ORDER BY l.scope, l.name = '*'
$$;

CREATE FUNCTION minion_lock_budgets(ids uuid[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    one uuid;
BEGIN
    FOREACH one IN ARRAY ids LOOP
        PERFORM 1 FROM budgets WHERE task_id = one FOR NO KEY UPDATE;
    END LOOP;
END $$;

CREATE FUNCTION minion_lock_parent(t uuid) RETURNS void
    LANGUAGE sql
    AS $$
    SELECT 1 FROM task_status WHERE task_id = (SELECT parent_id FROM tasks WHERE id = t) FOR NO KEY UPDATE
$$;

CREATE FUNCTION minion_lock_usage(budget uuid, starts timestamp with time zone, ends timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM 1 FROM standing_usage u WHERE u.budget_id = budget AND u.period_start = starts FOR NO KEY UPDATE;
    IF FOUND THEN
        RETURN true;
    END IF;
    INSERT INTO standing_usage (budget_id, period_start, period_end)
        SELECT b.id, starts, ends FROM standing_budgets b WHERE b.id = budget FOR KEY SHARE
        ON CONFLICT DO NOTHING;
    IF FOUND THEN
        DELETE FROM standing_usage u WHERE u.budget_id = budget AND u.period_end < starts - interval '35 days';
    END IF;
    PERFORM 1 FROM standing_usage u WHERE u.budget_id = budget AND u.period_start = starts FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;

CREATE FUNCTION minion_mark_blocks() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.journal_format := GREATEST(NEW.journal_format, 2);
    RETURN NEW;
END $$;

CREATE FUNCTION minion_mark_end() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.ended_in := CASE WHEN NEW.finished_at IS NOT NULL THEN pg_current_xact_id()::text::bigint END;
    RETURN NEW;
END $$;

CREATE FUNCTION minion_next_turn(ns text, conversation text) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    successor task_status;
BEGIN
    SELECT s.* INTO successor FROM task_status s
        WHERE s.namespace = ns AND s.conversation_id = conversation AND s.state = 'pending' AND s.rank = minion_parked()
        ORDER BY s.task_id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE task_status s SET rank = minion_place(s.task_id, ns, conversation, k.created_at, s.priority)
            FROM tasks k WHERE s.task_id = successor.task_id AND k.id = s.task_id;
        PERFORM minion_notify_pending();
    END IF;
END $$;

CREATE FUNCTION minion_notify_pending() RETURNS void
    LANGUAGE sql
    AS $$
    SELECT pg_notify('minion_pending', '')
$$;

CREATE FUNCTION minion_obstacle(s task_status, granted boolean) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    pause record;
    rule record;
    running_now integer;
    rates jsonb := '[]';
    first uuid;
BEGIN
    -- A task that was accepted late, or scheduled, may have an earlier id than one that has begun since.
    IF s.claim = 0 AND s.conversation_id IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtext('minion_turn'), hashtext(s.conversation_id));
        first := minion_predecessor(s.task_id, s.namespace, s.conversation_id);
        IF first IS NOT NULL THEN
            RETURN jsonb_build_object('kind', 'turn', 'task', first);
        END IF;
    END IF;
    SELECT p.scope, p.name, p.reason, p.created_at INTO pause FROM pauses p
        WHERE p.namespace = s.namespace AND (p.scope = 'capability' AND p.name = s.capability
            OR p.scope = 'agent' AND p.name = s.agent_name OR p.scope = 'key' AND p.name = s.key)
        ORDER BY p.scope LIMIT 1;
    IF FOUND THEN
        RETURN jsonb_build_object('kind', 'paused', 'scope', pause.scope, 'name', pause.name,
                                  'reason', pause.reason, 'since', pause.created_at);
    END IF;
    FOR rule IN SELECT * FROM minion_limits_of(s.namespace, s.capability, s.agent_name, s.key) LOOP
        IF rule.max_running IS NOT NULL THEN
            PERFORM 1 FROM limits l WHERE l.namespace = s.namespace AND l.scope = rule.scope AND l.name = rule.rule
                FOR NO KEY UPDATE;
            SELECT count(*) INTO running_now FROM task_status o
                WHERE o.state = 'running' AND o.namespace = s.namespace AND o.task_id <> s.task_id
                  AND CASE rule.scope WHEN 'capability' THEN o.capability = rule.name
                                      WHEN 'agent' THEN o.agent_name = rule.name ELSE o.key = rule.name END;
            IF running_now >= rule.max_running THEN
                RETURN jsonb_build_object('kind', 'max_running', 'scope', rule.scope, 'name', rule.name,
                                          'limit', rule.max_running, 'running', running_now);
            END IF;
        END IF;
        IF rule.rate IS NOT NULL THEN
            rates := rates || jsonb_build_object('scope', rule.scope, 'name', rule.name, 'rate', rule.rate,
                                                 'period_seconds', rule.period_seconds);
        END IF;
    END LOOP;
    IF NOT granted AND rates <> '[]' THEN
        RETURN jsonb_build_object('kind', 'rate', 'namespace', s.namespace, 'rates', rates);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION minion_open_budget(t uuid, given jsonb) RETURNS void
    LANGUAGE sql
    AS $$
    SELECT minion_open_budgets(ARRAY[t], ARRAY[given])
$$;

CREATE FUNCTION minion_open_budgets(ids uuid[], given jsonb[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM minion_check_budget(g.value) FROM (SELECT DISTINCT value FROM unnest(given) AS value) AS g;
    INSERT INTO budgets (task_id, tokens, microdollars, steps, seconds, on_breach)
        SELECT b.id, (b.given->>'tokens')::numeric, (b.given->>'dollars')::numeric * 1000000,
               (b.given->>'steps')::numeric, (b.given->>'seconds')::double precision,
               COALESCE(b.given->>'on_breach', 'ask')
            FROM unnest(ids, given) AS b (id, given);
END $$;

CREATE FUNCTION minion_open_remote(t uuid) RETURNS integer
    LANGUAGE sql STABLE
    AS $$
    SELECT count(*)::integer FROM remote_calls r WHERE r.task_id = t AND r.state IN ('working', 'input_required')
$$;

CREATE FUNCTION minion_overtime(most integer) RETURNS TABLE(task_id uuid, breach jsonb)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
BEGIN
    UPDATE budgets SET due_at = NULL WHERE task_id IN (
        SELECT b.task_id FROM budgets b JOIN task_outcomes o ON o.task_id = b.task_id
            WHERE b.due_at < now() AND b.on_breach = 'fail'
            ORDER BY b.due_at LIMIT 10 * most FOR NO KEY UPDATE OF b SKIP LOCKED);
    RETURN QUERY SELECT b.task_id, minion_breach(ARRAY[b.task_id], '{}') FROM budgets b
        JOIN task_status s ON s.task_id = b.task_id AND s.state IN ('pending', 'running', 'waiting')
        WHERE b.due_at < now() AND b.on_breach = 'fail' ORDER BY b.due_at LIMIT most;
END $$;

CREATE FUNCTION minion_owe_webhooks(t uuid, final text) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM webhooks WHERE enabled) THEN
        RETURN;
    END IF;
    INSERT INTO webhook_deliveries (webhook_id, task_id, state)
        SELECT w.id, t, final FROM webhooks w JOIN tasks k ON k.id = t
            -- The ends of trials are no news of the production.
            WHERE w.enabled AND 'tasks' = ANY (w.events) AND w.namespace = k.namespace AND k.journal_format <> 3
              AND (w.states = '{}' OR final = ANY (w.states))
              AND (w.agents = '{}' OR k.agent_name = ANY (w.agents)) AND k.labels @> w.labels
              AND (k.parent_id IS NULL OR NOT w.roots_only)
            -- A webhook that is being removed is waited for and left out: its foreign key would fail the task's end.
            FOR KEY SHARE OF w
        ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM pg_notify('minion_webhooks', '');
    END IF;
END $$;

CREATE FUNCTION minion_parked() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT 9000000000000000000
$$;

CREATE FUNCTION minion_period(period text, zone text, moment timestamp with time zone, OUT starts timestamp with time zone, OUT ends timestamp with time zone) RETURNS record
    LANGUAGE sql STABLE
    AS $$
    SELECT date_trunc(period, moment, zone), CASE period
        WHEN 'hour' THEN date_trunc('hour', moment, zone) + interval '1 hour'
        ELSE (date_trunc(period, moment AT TIME ZONE zone) + ('1 ' || period)::interval) AT TIME ZONE zone END
$$;

CREATE FUNCTION minion_place(t uuid, ns text, conversation text, since timestamp with time zone, priority integer) RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN conversation IS NOT NULL AND minion_predecessor(t, ns, conversation) IS NOT NULL
                THEN minion_parked() ELSE minion_rank(since, priority) END
$$;

CREATE FUNCTION minion_predecessor(t uuid, ns text, conversation text) RETURNS uuid
    LANGUAGE sql STABLE
    AS $$
    SELECT e.task_id FROM task_status e
        WHERE e.namespace = ns AND e.conversation_id = conversation AND e.task_id <> t
          AND e.state IN ('pending', 'queued', 'running', 'waiting') AND (e.claim = 0, e.task_id) < (true, t)
        ORDER BY e.claim = 0, e.task_id LIMIT 1
$$;

CREATE FUNCTION minion_proposal(s steps) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT left(encode(sha256(convert_to(concat_ws(
        '/', s.task_id, s.number, s.request_hash, CASE WHEN s.kind <> 'wait' THEN s.claim END, s.usage->>'asks',
        CASE WHEN s.approvals->'edited' = 'true' THEN s.approvals->>'arguments' END), 'UTF8')), 'hex'), 12)
$$;

CREATE FUNCTION minion_prune_audit(through bigint, chained bytea, proof bytea) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
DECLARE
    pruned bigint;
BEGIN
    INSERT INTO audit_ends (name, position, hash, signature) VALUES ('start', through, chained, proof)
        ON CONFLICT (name) DO UPDATE SET position = EXCLUDED.position, hash = EXCLUDED.hash,
            signature = EXCLUDED.signature, at = now()
            WHERE audit_ends.position < EXCLUDED.position;
    DELETE FROM audit_log WHERE position <= through;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END $$;
REVOKE ALL ON FUNCTION minion_prune_audit(through bigint, chained bytea, proof bytea) FROM PUBLIC;

CREATE FUNCTION minion_put_steps(t uuid, c integer, journal jsonb) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, output,
                       output_order, error, stdout, usage, cost_microdollars, function_version_id, started_at,
                       finished_at, program, line)
    SELECT t, s.number, s.kind, s.name, s.status, COALESCE(s.effect, 'pure'), s.request_hash, c, s.input, s.input_order,
           s.output, s.output_order, s.error, s.stdout, s.usage, COALESCE(s.cost_microdollars, 0),
           s.function_version_id, COALESCE(s.started_at, now()), s.finished_at, s.program, s.line
        FROM jsonb_to_recordset(journal) AS s (
            number integer, kind text, name text, status text, effect text, request_hash text, input jsonb,
            input_order jsonb, output jsonb, output_order jsonb, error jsonb, stdout text, usage jsonb,
            cost_microdollars bigint, function_version_id uuid, started_at timestamptz, finished_at timestamptz,
            program integer, line integer)
    ON CONFLICT (task_id, number) DO UPDATE SET
        status = EXCLUDED.status, output = EXCLUDED.output, output_order = EXCLUDED.output_order,
        error = EXCLUDED.error, stdout = EXCLUDED.stdout,
        usage = EXCLUDED.usage, cost_microdollars = EXCLUDED.cost_microdollars, claim = EXCLUDED.claim,
        finished_at = EXCLUDED.finished_at
        WHERE steps.status IN ('started', 'failed')
$$;

CREATE FUNCTION minion_rank(since timestamp with time zone, priority integer) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT (extract(epoch FROM since) * 1000000)::bigint - priority::bigint * 60000000
$$;

CREATE FUNCTION minion_record_state() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO task_events (task_id, number, type, data) VALUES (
        NEW.task_id,
        1 + COALESCE((SELECT max(number) FROM task_events WHERE task_id = NEW.task_id), 1),
        'task.' || NEW.state,
        jsonb_strip_nulls(jsonb_build_object(
            'claim', NEW.claim, 'attempts', NEW.attempts, 'reason', NEW.wait_reason,
            'due_at', CASE WHEN NEW.wait_reason <> 'answer' THEN NEW.due_at END)));
    RETURN NULL;
END $$;

CREATE FUNCTION minion_record_step() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.child_id IS NOT NULL
            AND EXISTS (SELECT 1 FROM task_outcomes WHERE task_id = NEW.task_id) THEN
        RETURN NULL;
    END IF;
    INSERT INTO task_events (task_id, number, type, data) VALUES (
        NEW.task_id,
        1 + COALESCE((SELECT max(number) FROM task_events WHERE task_id = NEW.task_id), 1),
        'step.' || NEW.status,
        jsonb_strip_nulls(jsonb_build_object(
            'step', NEW.number, 'kind', NEW.kind, 'name', NEW.name, 'claim', NEW.claim, 'child_id', NEW.child_id,
            -- A step that is executed again loses it.
            'error', CASE WHEN NEW.status = 'failed' THEN NULLIF(jsonb_strip_nulls(jsonb_build_object(
                'type', NEW.error->'type', 'message', left(NEW.error->>'message', 2000))), '{}') END)));
    RETURN NULL;
END $$;

CREATE FUNCTION minion_refusal(t uuid, c integer, journal jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    begins record;
    stop jsonb;
    breach jsonb := jsonb_build_object(
        'waits_for', 'handed_back', 'then', 'wait', 'budget', t, 'agent', '', 'what', 'steps', 'limit', 0, 'spent', 0,
        'reserved', 0, 'asked', 1);
BEGIN
    SELECT s.number, s.kind, s.name INTO begins
        FROM jsonb_to_recordset(journal) AS s (number integer, kind text, name text, status text, effect text, error jsonb)
        WHERE s.status = 'started' AND (s.kind = 'model_call' OR s.effect = 'unsafe') AND s.error IS NULL
          AND NOT EXISTS (SELECT 1 FROM steps d WHERE d.task_id = t AND d.number = s.number AND d.claim = c
                                                  AND d.status = 'started')
        LIMIT 1;
    -- A cancelled task stops anyway.
    IF NOT FOUND OR (SELECT cancel_requested FROM task_status WHERE task_id = t) THEN
        RETURN NULL;
    END IF;
    stop := (SELECT minion_stop_of(s.namespace, s.agent_name, s.key) FROM task_status s WHERE s.task_id = t);
    IF stop IS NOT NULL THEN
        RETURN jsonb_build_object('cancel', false, 'stopped', stop, 'breach', breach || '{"waits_for": "stopped"}');
    ELSIF begins.kind = 'model_call' AND EXISTS (
            SELECT 1 FROM batch_calls b JOIN steps d ON d.task_id = b.task_id AND d.number = b.step
                WHERE b.task_id = t AND b.step = begins.number AND d.status = 'started') THEN
        RETURN jsonb_build_object('cancel', false, 'breach', breach);
    ELSIF begins.kind = 'model_call' AND EXISTS (
            SELECT 1 FROM minion_standing_of(t, begins.name) b WHERE NOT EXISTS (
                SELECT 1 FROM standing_reservations r
                    WHERE r.task_id = t AND r.claim = c AND r.step = begins.number AND r.budget_id = b.id)) THEN
        RETURN jsonb_build_object('cancel', false, 'unreserved', true, 'breach', breach);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION minion_refuse(agent text, idempotency text, failure jsonb, submitter text) RETURNS uuid
    LANGUAGE sql
    AS $$
    SELECT minion_refuse_v2(agent, idempotency, left(idempotency, 255), failure, submitter, 'default', NULL)
$$;

CREATE FUNCTION minion_refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'a row of % must not change; store a new version', TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
END $$;

CREATE FUNCTION minion_refuse_content(messages jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    found record;
BEGIN
    SELECT m.n - 1 AS message, b.n - 1 AS block, b.value->>'type' AS type INTO found
        FROM jsonb_array_elements(CASE jsonb_typeof(messages) WHEN 'array' THEN messages END)
                WITH ORDINALITY AS m (value, n)
            LEFT JOIN LATERAL jsonb_array_elements(
                CASE jsonb_typeof(m.value->'content') WHEN 'array' THEN m.value->'content' END)
                WITH ORDINALITY AS b (value, n) ON true
        WHERE m.value->>'role' = 'tool' OR b.value->>'type' NOT IN (
                'text', 'image', 'document', 'search_result', 'tool_use', 'tool_result', 'thinking', 'redacted_thinking',
                'server_tool_use', 'web_search_tool_result', 'web_fetch_tool_result', 'code_execution_tool_result',
                'bash_code_execution_tool_result', 'text_editor_code_execution_tool_result', 'tool_search_tool_result',
                'advisor_tool_result', 'mcp_tool_use', 'mcp_tool_result', 'mcp_tool_listing', 'container_upload',
                'compaction', 'fallback', 'input_text', 'output_text', 'image_url', 'input_image',
                'file', 'input_file', 'text-plain')
        ORDER BY m.n, b.n LIMIT 1;
    IF found.type IS NOT NULL THEN
        RAISE EXCEPTION 'messages[%].content[%]: blocks of type % are not supported here. Send one of text, image, document, '
            'search_result, tool_result, or a text that says the same.', found.message, found.block,
            quote_literal(left(found.type, 50)) USING ERRCODE = 'MN007';
    ELSIF found.message IS NOT NULL THEN
        RAISE EXCEPTION 'messages[%]: messages of role ''tool'' are not supported yet. Put what the tool returned into a '
            'user message.', found.message USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE FUNCTION minion_refuse_missing_files(ns text, ids text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    missing text;
BEGIN
    -- Locked, so that none of them is deleted before this transaction ends.
    PERFORM FROM files f WHERE f.namespace = ns AND f.id = ANY (ids) ORDER BY f.id FOR KEY SHARE;
    SELECT i.id INTO missing FROM unnest(ids) AS i (id)
        WHERE NOT EXISTS (SELECT FROM files f WHERE f.namespace = ns AND f.id = i.id) LIMIT 1;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'There is no file % in this namespace. Upload it with POST /v1/files, and use the id of the answer.',
            missing USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE FUNCTION minion_refuse_repeated_keys(value json) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    twice text;
BEGIN
    WITH RECURSIVE parts (part) AS (
        SELECT value
        UNION ALL SELECT m.part FROM parts p CROSS JOIN LATERAL (
                SELECT o.value FROM json_each(CASE json_typeof(p.part) WHEN 'object' THEN p.part END) AS o
                UNION ALL
                SELECT a.value FROM json_array_elements(CASE json_typeof(p.part) WHEN 'array' THEN p.part END) AS a
            ) AS m (part)
            WHERE json_typeof(m.part) IN ('object', 'array')
    )
    SELECT k.key INTO twice FROM parts p CROSS JOIN LATERAL (
            SELECT o.key FROM json_object_keys(CASE json_typeof(p.part) WHEN 'object' THEN p.part END) AS o (key)
                GROUP BY o.key HAVING count(*) > 1) AS k
        LIMIT 1;
    IF twice IS NOT NULL THEN
        RAISE EXCEPTION 'The input has the key % twice in one object.', quote_literal(left(twice, 50))
            USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE FUNCTION minion_refuse_replay(source uuid) RETURNS smallint
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'Task % is a trial, and cannot be replayed. Run `minion eval` again, or submit a new task.', source
        USING ERRCODE = 'MN009';
END $$;

CREATE FUNCTION minion_refuse_v2(agent text, idempotency text, sent_as text, failure jsonb, submitter text, ns text, tenant text) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
DECLARE
    t uuid := minion_uuidv7();
    holder uuid;
BEGIN
    agent := left(agent, 200);
    idempotency := left(idempotency, 255);
    holder := (minion_hold_idempotency(ns, idempotency, t, failure)).task_id;
    IF holder <> t THEN
        RETURN holder;
    END IF;
    INSERT INTO tasks (id, namespace, agent_name, root_id, origin_id, labels, submitted_by, key)
        VALUES (t, ns, agent, t, t, jsonb_build_object('celery_id', sent_as), submitter, tenant);
    INSERT INTO task_status (task_id, state, namespace, agent_name, key, rank)
        VALUES (t, 'pending', ns, COALESCE(agent, ''), COALESCE(tenant, ''), minion_rank(now(), 0));
    PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
    RETURN t;
END $$;

CREATE FUNCTION minion_reject(t uuid, failure jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    PERFORM minion_lock_parent(t);
    PERFORM 1 FROM task_status WHERE task_id = t AND state = 'pending' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
    RETURN true;
END $$;

CREATE FUNCTION minion_release(t uuid, c integer, how text, charged boolean, delay interval, result jsonb) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    now_at task_status;
    most integer;
    failure jsonb := NULLIF(result->'error', 'null'::jsonb);
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    UPDATE task_status SET attempts = attempts + charged::integer, losses = losses + (how = 'lost')::integer
        WHERE task_id = t RETURNING * INTO now_at;
    SELECT max_attempts INTO most FROM agent_versions WHERE id = (SELECT agent_version_id FROM tasks WHERE id = t);
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    IF now_at.cancel_requested THEN
        PERFORM minion_close_execution(t, c, 'cancelled', result);
        PERFORM minion_settle(t, 'cancelled',
            '{"error": {"type": "cancelled", "message": "Cancelled while it ran."}}'::jsonb);
        RETURN 'cancelled';
    ELSIF (charged AND now_at.attempts >= most) OR (how = 'lost' AND now_at.losses >= GREATEST(most, 3)) THEN
        failure := COALESCE(failure, '{"type": "lost"}'::jsonb) || jsonb_build_object(
            'attempts', now_at.attempts, 'losses', now_at.losses, 'max_attempts', most);
        PERFORM minion_close_execution(t, c, CASE WHEN how = 'lost' THEN 'lost' ELSE 'failed' END, result);
        PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
        RETURN 'failed';
    END IF;
    PERFORM minion_close_execution(t, c, how, result);
    IF delay > interval '0' THEN
        UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = 'backoff', due_at = now() + delay,
                               updated_at = now()
            WHERE task_id = t;
        RETURN 'waiting';
    END IF;
    UPDATE task_status SET state = 'pending', worker_id = NULL, updated_at = now() WHERE task_id = t;
    PERFORM minion_notify_pending();
    RETURN 'pending';
END $$;
CREATE FUNCTION minion_release(t uuid, c integer, how text, charged boolean, delay interval, result jsonb, w uuid) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    PERFORM minion_lock_parent(t);
    PERFORM 1 FROM task_status WHERE task_id = t AND (w IS NULL OR worker_id = w) FOR NO KEY UPDATE;
    RETURN CASE WHEN FOUND THEN minion_release(t, c, how, charged, delay, result) END;
END $$;

CREATE FUNCTION minion_remote_polled(t uuid, number integer, remote text, news jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    known remote_calls;
    next_state text := COALESCE(news->>'state', 'working');
BEGIN
    PERFORM 1 FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    SELECT * INTO known FROM remote_calls r
        WHERE r.task_id = t AND r.step = number AND r.remote_id = remote AND r.state IN ('working', 'input_required')
        FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    ELSIF NOT news ? 'result'
          AND (known.answer IS NOT NULL OR cardinality(known.answered) > (news->>'answered')::integer) THEN
        -- A person has answered in the meantime: the server gets the answers first, and is asked again then.
        RETURN true;
    ELSIF news ? 'error' THEN
        UPDATE remote_calls SET error = news->>'error', failures = failures + 1,
                failing_since = COALESCE(failing_since, now()),
                due_at = now() + (news->>'poll_seconds')::double precision * interval '1 s'
            WHERE task_id = t AND step = number;
        RETURN true;
    ELSIF news ? 'result' THEN
        UPDATE remote_calls SET state = 'done', result = news->>'result', message = news->>'message', error = NULL,
                requests = NULL, form = NULL, proposed = NULL, polled_at = now(), changed_at = now()
            WHERE task_id = t AND step = number;
        UPDATE steps s SET usage = s.usage - 'asks', approvals = NULL
            WHERE s.task_id = t AND s.number = minion_remote_polled.number AND s.status = 'started' AND s.usage ? 'asks';
        PERFORM minion_count_down(t, 1);
        RETURN true;
    END IF;
    UPDATE remote_calls r SET state = next_state, message = news->>'message', error = NULL, failures = 0,
            failing_since = NULL, polled_at = now(),
            requests = CASE WHEN next_state = 'input_required' THEN COALESCE(news->>'requests', r.requests) END,
            form = CASE WHEN next_state = 'input_required' THEN COALESCE(news->>'form', r.form) END,
            proposed = CASE WHEN next_state = 'input_required' THEN COALESCE(news->'proposed', r.proposed) END,
            round = r.round + (news ? 'requests')::integer,
            poll_seconds = (news->>'poll_seconds')::double precision,
            due_at = now() + (news->>'poll_seconds')::double precision * interval '1 s',
            expires_at = CASE WHEN news ? 'ttl_seconds'
                              THEN r.created_at + (news->>'ttl_seconds')::double precision * interval '1 s'
                              ELSE r.expires_at END,
            changed_at = CASE WHEN next_state <> r.state OR news ? 'requests' THEN now() ELSE r.changed_at END
        WHERE r.task_id = t AND r.step = number;
    IF next_state <> known.state OR news ? 'requests' THEN
        UPDATE steps s SET approvals = NULL, usage = CASE
                WHEN next_state = 'input_required' THEN s.usage || jsonb_build_object('asks', news->'asks')
                ELSE s.usage - 'asks' END
            WHERE s.task_id = t AND s.number = minion_remote_polled.number AND s.status = 'started';
        PERFORM minion_show_remote(t);
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION minion_remote_taken(t uuid, number integer, remote text, keys text[], delay interval) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE remote_calls SET answer = NULL, requests = NULL, answered = answered || keys, due_at = now() + delay,
                            error = NULL, failures = 0, failing_since = NULL
        WHERE task_id = t AND step = number AND remote_id = remote AND state = 'working' AND answer IS NOT NULL;
    RETURN FOUND;
END $$;

CREATE FUNCTION minion_replay_from(request jsonb, source uuid, first integer, edited jsonb, who text) RETURNS uuid
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    old record;
    new uuid;
    step steps;
    policy jsonb;
BEGIN
    SELECT k.journal_format, COALESCE(k.history_before, o.finished_at) AS history_before INTO old
        FROM tasks k JOIN task_outcomes o ON o.task_id = k.id
        -- Retention waits until the steps are copied.
        WHERE k.id = source FOR KEY SHARE OF k;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task % that has ended.', source USING ERRCODE = 'MN008';
    END IF;
    SELECT a.task_id INTO new FROM minion_accept(request) AS a;
    UPDATE tasks SET from_step = first + (edited IS NOT NULL)::integer, history_before = old.history_before
        WHERE id = new AND journal_format = old.journal_format;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'The journal of task % has the format % of another release, and cannot be continued. '
            'Replay the task from its beginning.', source, old.journal_format USING ERRCODE = 'MN009';
    END IF;
    SELECT * INTO step FROM steps s WHERE s.task_id = source AND s.number = first AND edited IS NOT NULL;
    policy := minion_approval_policy(step);
    IF policy IS NOT NULL THEN
        PERFORM minion_check_edited_approval(step, new, policy, NULLIF(edited->'approver', 'null'));
    END IF;
    -- The step after an approval is the call that it permits.
    SELECT * INTO step FROM steps s
        WHERE s.task_id = source AND s.number = first - 1 AND s.output ? 'arguments' AND edited IS NULL;
    IF minion_approval_policy(step) IS NOT NULL THEN
        RAISE EXCEPTION 'Step % (%) has an approval policy, and was approved for one call: replay from step %, so that the '
            'new task asks again.', step.number, step.name, step.number USING ERRCODE = 'MN009';
    END IF;
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, output,
                       output_order, error, stdout, usage, child_id, function_version_id, due_at, started_at,
                       finished_at, copied_from, approvals, program, line)
        SELECT new, s.number, s.kind, s.name, s.status, s.effect, s.request_hash, 0, s.input, s.input_order,
               -- The sub-task may be deleted before its outcome is read.
               CASE WHEN s.kind = 'subtask' AND s.copied_from IS NULL THEN jsonb_build_object(
                        'task_id', o.task_id, 'state', o.state, 'output', COALESCE(o.output, c.value), 'error', o.error)
                    ELSE s.output END,
               CASE WHEN s.kind = 'subtask' AND s.copied_from IS NULL THEN o.output_order ELSE s.output_order END,
               s.error, s.stdout,
               CASE WHEN s.usage ? 'decision' THEN jsonb_build_object('decision', s.usage->'decision') END,
               s.child_id, s.function_version_id, s.due_at, s.started_at, s.finished_at,
               COALESCE(s.copied_from, source), s.approvals, s.program, s.line
        FROM steps s LEFT JOIN task_outcomes o ON o.task_id = s.child_id LEFT JOIN contents c ON c.sha256 = o.output_sha256
        WHERE s.task_id = source AND s.number < first + (edited IS NOT NULL)::integer;
    UPDATE steps p SET status = 'started', output = NULL, output_order = NULL, error = NULL, stdout = NULL,
                       finished_at = NULL
        WHERE p.task_id = new AND p.program = p.number AND p.number < first AND EXISTS (
            SELECT 1 FROM steps later WHERE later.task_id = source AND later.program = p.number
                AND later.number >= first + (edited IS NOT NULL)::integer);
    -- What tools returned in these steps may be files.
    INSERT INTO task_files (task_id, namespace, file_id)
        SELECT new, f.namespace, f.file_id FROM task_files f WHERE f.task_id = source ON CONFLICT DO NOTHING;
    UPDATE steps s SET status = 'finished', error = NULL, finished_at = now(),
            output = CASE WHEN s.kind = 'subtask' THEN s.output || jsonb_build_object(
                              'state', 'succeeded', 'output', edited->'output', 'error', NULL)
                          ELSE edited->'output' END,
            output_order = NULLIF(edited->'output_order', 'null'::jsonb),
            usage = COALESCE(s.usage, '{}'::jsonb) || jsonb_build_object(
                'edited', jsonb_build_object('by', who, 'at', now())),
            approvals = CASE WHEN policy IS NOT NULL THEN minion_add_approval(
                s, 1, edited->'output'->'arguments', NULL,
                jsonb_build_object('key', edited->'approver'->'key', 'by', who, 'at', now())) END
        WHERE s.task_id = new AND s.number = first AND edited IS NOT NULL;
    RETURN new;
END $$;

CREATE FUNCTION minion_republish(lease interval, patience interval, empty text[], most integer) RETURNS TABLE(task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer, time_limit integer, priority smallint)
    LANGUAGE sql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
    WITH overtaking AS MATERIALIZED (
        SELECT r.capability, max(r.published_at) AS latest FROM task_status r WHERE r.state = 'running' GROUP BY 1
    ), stalled AS (
        SELECT s.task_id FROM task_status s LEFT JOIN overtaking o ON o.capability = s.capability
            WHERE s.state = 'queued' AND s.published_at < now() - patience * power(2, LEAST(s.published, 7) - 1)
              AND (s.capability = ANY (empty) AND s.capability IN (
                    SELECT unnest(w.capabilities) FROM workers w WHERE w.status = 'online'
                        AND w.last_seen > now() - lease AND w.idle_since < now() - patience)
                OR o.latest > s.published_at + patience)
            ORDER BY s.published_at LIMIT most FOR NO KEY UPDATE OF s SKIP LOCKED
    ), again AS (
        UPDATE task_status s SET published = s.published + 1, published_at = now()
            FROM stalled WHERE s.task_id = stalled.task_id
            RETURNING s.task_id, s.claim, s.capability, s.priority
    )
    SELECT a.task_id, a.claim, a.capability, t.agent_name, v.soft_time_limit, v.time_limit, a.priority
        FROM again a JOIN tasks t ON t.id = a.task_id JOIN agent_versions v ON v.id = t.agent_version_id
$$;

CREATE FUNCTION minion_required(policy jsonb, rules integer[]) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT jsonb_build_object(
            'people', max(COALESCE((part->>'people')::integer, 1)),
            'not_submitter', COALESCE(bool_or((part->>'not_submitter')::boolean), false),
            'approvers', COALESCE(jsonb_agg(jsonb_build_object(
                'roles', COALESCE(part->'roles', '[]'), 'keys', COALESCE(part->'keys', '[]')) ORDER BY n)
                FILTER (WHERE part ?| ARRAY['roles', 'keys']), '[]'))
        FROM (SELECT policy, 0 UNION ALL
              SELECT r.part, r.n FROM jsonb_array_elements(policy->'rules') WITH ORDINALITY AS r (part, n)
                  WHERE rules IS NULL OR r.n - 1 = ANY (rules)) AS parts (part, n)
$$;

CREATE FUNCTION minion_reserve(t uuid, c integer, asked jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    ids uuid[] := (SELECT budget_ids FROM tasks WHERE id = t);
    breach jsonb;
    begun boolean := EXISTS (SELECT 1 FROM reservations WHERE task_id = t AND step = (asked->>'step')::integer);
    free boolean := COALESCE((asked->>'tokens')::bigint, 0) = 0 AND COALESCE((asked->>'microdollars')::bigint, 0) = 0;
BEGIN
    IF ids IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM minion_lock_budgets(ids);
    IF EXISTS (SELECT 1 FROM reservations WHERE task_id = t AND step = (asked->>'step')::integer AND claim = c) THEN
        RETURN NULL;
    END IF;
    -- A step counts once, however often it begins. Its tokens and dollars count each time.
    asked := asked || jsonb_build_object('steps', CASE WHEN begun THEN 0 ELSE (asked->>'steps')::integer END);
    breach := minion_breach(ids, asked);
    IF breach IS NOT NULL THEN
        RETURN breach;
    END IF;
    INSERT INTO reservations (task_id, step, claim, budget_task_id, tokens, microdollars, steps, settled_at)
        SELECT t, (asked->>'step')::integer, c, id, COALESCE((asked->>'tokens')::bigint, 0),
               COALESCE((asked->>'microdollars')::bigint, 0), (asked->>'steps')::integer, CASE WHEN free THEN now() END
            FROM unnest(ids) AS id;
    UPDATE budgets b SET
            spent_tokens = spent_tokens + COALESCE((asked->>'tokens')::bigint, 0),
            spent_microdollars = spent_microdollars + COALESCE((asked->>'microdollars')::bigint, 0),
            spent_steps = spent_steps + (asked->>'steps')::bigint,
            due_at = COALESCE(due_at, (SELECT e.started_at + b.seconds * interval '1 s' FROM executions e
                                           WHERE e.task_id = b.task_id AND e.claim = 1))
        WHERE task_id = ANY (ids);
    RETURN NULL;
END $$;

CREATE FUNCTION minion_reserve_standing(t uuid, c integer, asked jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    budget record;
    locked uuid[] := '{}';
    periods timestamptz[] := '{}';
    breach jsonb;
BEGIN
    FOR budget IN
        SELECT b.id, p.starts, p.ends FROM minion_standing_of(t, asked->>'model') b
            CROSS JOIN LATERAL minion_period(b.period, b.timezone, moment) p
            WHERE NOT EXISTS (SELECT 1 FROM standing_reservations r WHERE r.task_id = t AND r.claim = c
                                  AND r.step = (asked->>'step')::integer AND r.budget_id = b.id)
            ORDER BY b.id
    LOOP
        IF minion_lock_usage(budget.id, budget.starts, budget.ends) THEN
            locked := locked || budget.id;
            periods := periods || budget.starts;
        END IF;
    END LOOP;
    breach := minion_standing_breach(t, locked, asked, moment);
    IF breach IS NOT NULL THEN
        -- It is used up, if running calls alone are not the reason and the call would fit into the whole budget.
        PERFORM minion_alert((breach->>'budget')::uuid, (breach->>'starts')::timestamptz, 100)
            WHERE (breach->>'asked')::numeric BETWEEN (breach->>'limit')::numeric - (breach->>'spent')::numeric + 0.000001
                                                  AND (breach->>'limit')::numeric;
        RETURN breach;
    END IF;
    WITH held AS (
        INSERT INTO standing_reservations AS r (task_id, step, claim, budget_id, period_start, tokens, microdollars)
            SELECT t, (asked->>'step')::integer, c, l.id, l.starts, COALESCE((asked->>'tokens')::bigint, 0),
                   COALESCE((asked->>'microdollars')::bigint, 0)
                FROM unnest(locked, periods) AS l (id, starts)
            RETURNING r.*
    )
    UPDATE standing_usage u SET reserved_tokens = reserved_tokens + h.tokens,
                                reserved_microdollars = reserved_microdollars + h.microdollars
        FROM held h WHERE u.budget_id = h.budget_id AND u.period_start = h.period_start;
    RETURN NULL;
END $$;

CREATE FUNCTION minion_resolve(request jsonb, OUT version_id uuid, OUT agent_name text, OUT queue text, OUT input_schema jsonb) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_variable
DECLARE
    ns text := COALESCE(request->>'namespace', 'default');
    wanted text := request->>'agent';
    capability text := request->>'capability';
    found record;
    candidates text[];
BEGIN
    IF request->>'agent_version_id' IS NOT NULL THEN
        SELECT a.name, a.status, v.* INTO found FROM agent_versions v JOIN agents a ON a.id = v.agent_id
            WHERE v.id = (request->>'agent_version_id')::uuid AND a.namespace = ns;
    ELSIF wanted IS NOT NULL THEN
        SELECT a.name, a.status, v.* INTO found FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
            WHERE a.namespace = ns AND a.name = wanted;
    ELSIF capability IS NOT NULL THEN
        SELECT array_agg(a.name ORDER BY a.name) INTO candidates
            FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
            WHERE a.namespace = ns AND a.status <> 'disabled' AND v.capabilities @> ARRAY[capability];
        IF candidates IS NULL THEN
            RAISE EXCEPTION 'No agent offers the capability %. `minion capabilities` lists them.',
                quote_literal(left(capability, 100)) USING ERRCODE = 'MN002';
        ELSIF cardinality(candidates) > 1 THEN
            RAISE EXCEPTION 'Several agents offer the capability %: %. Name the agent.',
                quote_literal(capability), array_to_string(candidates, ', ') USING ERRCODE = 'MN003';
        END IF;
        SELECT a.name, a.status, v.* INTO found FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
            WHERE a.namespace = ns AND a.name = candidates[1];
    ELSIF request->'messages' IS NOT NULL AND jsonb_typeof(request->'messages') = 'array' THEN
        RETURN;
    ELSE
        RAISE EXCEPTION 'Name an agent or a capability, or send messages to be routed by.' USING ERRCODE = 'MN007';
    END IF;

    IF found.id IS NULL THEN
        RAISE EXCEPTION 'There is no agent named %. `minion agents` lists them; `minion apply PATH` stores new ones.',
            quote_literal(left(COALESCE(wanted, request->>'agent_version_id'), 100)) USING ERRCODE = 'MN001';
    ELSIF found.status = 'disabled' THEN
        RAISE EXCEPTION 'The agent % is disabled and accepts no tasks. `minion agents activate %` changes that.',
            quote_literal(found.name), found.name USING ERRCODE = 'MN004';
    ELSIF capability IS NOT NULL AND NOT capability = ANY (found.capabilities) THEN
        RAISE EXCEPTION 'The agent % does not offer the capability %; it offers %.', quote_literal(found.name),
            quote_literal(left(capability, 100)), array_to_string(found.capabilities, ', ') USING ERRCODE = 'MN002';
    END IF;
    version_id := found.id;
    agent_name := found.name;
    queue := COALESCE(capability, found.capability);
    -- Releases before 0.3 stored JSON null.
    input_schema := NULLIF(found.input_schema, 'null'::jsonb);
END $$;

CREATE FUNCTION minion_resolve_drawn(request jsonb, OUT version_id uuid, OUT agent_name text, OUT has_canary boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_variable
DECLARE
    canary record;
BEGIN
    SELECT r.version_id, r.agent_name INTO version_id, agent_name FROM minion_resolve(request) AS r;
    SELECT * INTO canary FROM minion_canary_for(request, version_id);
    has_canary := FOUND;
    IF has_canary AND minion_drawn(canary.version_id, COALESCE(request->>'conversation_id', request->>'key',
                                                                   request->>'draw'), canary.share) THEN
        version_id := canary.version_id;
    END IF;
END $$;

CREATE FUNCTION minion_resume_remote(t uuid, c integer, number integer) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN false;
    END IF;
    UPDATE remote_calls SET state = 'sent' WHERE task_id = t AND step = number AND state = 'answered';
    RETURN true;
END $$;

CREATE FUNCTION minion_return_call(b uuid, name text, why text, delay interval) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE batch_calls SET batch = NULL, attempt = attempt + 1, error = why, due_at = now() + delay,
                           custom_id = minion_custom_id(task_id, step, claim, attempt + 1)
        WHERE custom_id = name AND batch = b AND result IS NULL;
    RETURN FOUND;
END $$;

CREATE FUNCTION minion_route(t uuid, version uuid, queue text) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    budget jsonb;
BEGIN
    UPDATE task_status SET capability = queue, updated_at = now(),
                           agent_name = (SELECT name FROM agent_versions WHERE id = version)
        WHERE task_id = t AND state = 'pending' AND capability IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE tasks SET agent_version_id = version, agent_name = (SELECT name FROM agent_versions WHERE id = version)
        WHERE id = t AND agent_version_id IS NULL;
    -- The agent may have a budget; a task that was submitted with its own keeps that.
    IF FOUND AND NOT EXISTS (SELECT 1 FROM budgets WHERE task_id = t) THEN
        budget := minion_budget_for('{}', version);
        IF budget IS NOT NULL THEN
            PERFORM minion_open_budget(t, budget);
            UPDATE tasks SET budget_ids = budget_ids || t WHERE id = t;
        END IF;
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION minion_route_by(t uuid, version uuid, queue text, decision jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    IF NOT minion_route(t, version, queue) THEN
        RETURN false;
    END IF;
    UPDATE tasks SET routing = decision WHERE id = t AND decision IS NOT NULL;
    RETURN true;
END $$;

CREATE FUNCTION minion_routed_version(t uuid, active uuid) RETURNS uuid
    LANGUAGE sql STABLE
    AS $$
    SELECT COALESCE((
        SELECT c.version_id FROM minion_canary_for('{}', active) AS c JOIN tasks k ON k.id = t JOIN tasks r ON r.id = k.root_id
            WHERE k.replay_of IS NULL AND minion_drawn(
                c.version_id, COALESCE(k.conversation_id, r.conversation_id, k.key, k.root_id::text), c.share)), active)
$$;

CREATE FUNCTION minion_search_text(name text, description text, capabilities text[]) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT setweight(to_tsvector('english'::regconfig, translate(
               regexp_replace(name, '([a-z0-9])([A-Z])', '\1 \2', 'g'), '_.-', '   ')), 'A')
        || setweight(to_tsvector('english'::regconfig, translate(
               array_to_string(capabilities, ' '), '_.-', '   ')), 'B')
        || setweight(to_tsvector('english'::regconfig, description), 'C')
$$;

CREATE FUNCTION minion_security_event(version uuid, task uuid, what text, facts jsonb, threshold integer) RETURNS text
    LANGUAGE plpgsql
    AS $$
DECLARE
    head function_versions;
    since timestamptz;
    seen integer;
BEGIN
    SELECT * INTO head FROM function_versions WHERE id = version FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    INSERT INTO security_events (function_version_id, task_id, kind, detail) VALUES (version, task, what, facts);
    since := COALESCE(head.released_at, head.created_at);
    SELECT count(*) INTO seen FROM security_events
        WHERE function_version_id = version AND created_at >= since
          AND kind IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security');
    seen := seen + (SELECT count(DISTINCT COALESCE(task_id, id)) FROM security_events
        WHERE function_version_id = version AND created_at >= GREATEST(since, now() - interval '1 hour')
          AND kind NOT IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security'));
    IF threshold > 0 AND seen >= threshold AND head.status <> 'quarantined' THEN
        UPDATE function_versions SET status = 'quarantined',
                status_reason = format('%s security events, the last one %s', seen, what)
            WHERE id = version RETURNING * INTO head;
    END IF;
    RETURN head.status;
END $$;

CREATE FUNCTION minion_sendable_calls() RETURNS SETOF batch_calls
    LANGUAGE sql STABLE
    AS $$
    WITH of_whom AS MATERIALIZED (
        SELECT DISTINCT s.namespace, s.agent_name, COALESCE(s.key, '') AS key FROM batch_calls b JOIN task_status s ON s.task_id = b.task_id
            WHERE b.batch IS NULL AND b.result IS NULL AND EXISTS (SELECT 1 FROM stops)
    ), stopped AS MATERIALIZED (
        SELECT * FROM of_whom o WHERE minion_stop_of(o.namespace, o.agent_name, o.key) IS NOT NULL
    )
    SELECT b.* FROM batch_calls b JOIN task_status s ON s.task_id = b.task_id
        WHERE b.batch IS NULL AND b.result IS NULL AND b.due_at <= now()
          AND s.state NOT IN ('succeeded', 'failed', 'cancelled', 'expired')
          AND NOT EXISTS (SELECT 1 FROM stopped o WHERE o.namespace = s.namespace AND o.agent_name = s.agent_name
                                                        AND o.key = COALESCE(s.key, ''))
$$;

CREATE FUNCTION minion_session_bounds() RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
    entry oid[] := ARRAY(SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
                             AND proname IN ('minion_submit', 'minion_submit_json'));
    candidates jsonb[];
BEGIN
    IF NOT EXISTS (SELECT FROM sql_submitters) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(to_jsonb(b) ORDER BY b.role <> session_user) INTO candidates FROM sql_submitters b
        WHERE b.role IN (session_user, caller);
    IF candidates IS NOT NULL THEN
        RETURN candidates[1];
    ELSIF pg_has_role(caller, current_user, 'MEMBER') OR EXISTS (
            SELECT FROM pg_proc p, aclexplode(p.proacl) a
                WHERE p.oid = ANY (entry) AND a.grantee = quote_ident(caller)::regrole) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(to_jsonb(b)) INTO candidates FROM sql_submitters b JOIN pg_roles r ON r.rolname = b.role
        WHERE pg_has_role(caller, r.oid, 'MEMBER');
    IF cardinality(candidates) > 1 THEN
        RAISE EXCEPTION 'The role % is a member of several roles that may submit tasks: %. Choose one with SET ROLE.', caller,
            (SELECT string_agg(c.one->>'role', ', ' ORDER BY c.one->>'role') FROM unnest(candidates) AS c (one)) USING ERRCODE = 'MN010';
    ELSIF candidates IS NULL AND NOT EXISTS (
            SELECT FROM unnest(entry) AS e (function) WHERE has_function_privilege(caller, e.function, 'EXECUTE')) THEN
        -- It calls a function that runs with the rights of another role, whose bounds are not known here.
        RAISE EXCEPTION 'The role % may not submit tasks. `minion grant-submit %` permits it.', caller, caller
            USING ERRCODE = 'MN010';
    END IF;
    RETURN candidates[1];
END $$;

CREATE FUNCTION minion_settle(t uuid, final text, result jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    value jsonb := result->'output';
    large boolean := octet_length((result->'output')::text) > 65536;
    failure jsonb := NULLIF(result->'error', 'null'::jsonb);
    parent record;
BEGIN
    UPDATE task_status SET state = final, worker_id = NULL, wait_reason = NULL, due_at = NULL, open_waits = 0,
                           updated_at = now()
        WHERE task_id = t;
    INSERT INTO task_outcomes (task_id, state, output, output_sha256, output_order, error, error_fingerprint)
    VALUES (t, final, CASE WHEN NOT large THEN value END, CASE WHEN large THEN minion_store_content(value) END,
            CASE WHEN value <> 'null' THEN NULLIF(result->'output_order', 'null'::jsonb) END,
            failure, CASE WHEN failure IS NOT NULL THEN minion_fingerprint(failure) END);
    DELETE FROM unique_tasks WHERE task_id = t;
    PERFORM minion_owe_webhooks(t, final);
    SELECT parent_id AS id, parent_step AS step, namespace, conversation_id INTO parent FROM tasks WHERE id = t;
    IF parent.id IS NULL THEN
        IF parent.conversation_id IS NOT NULL THEN
            PERFORM minion_next_turn(parent.namespace, parent.conversation_id);
        END IF;
        RETURN;
    END IF;
    UPDATE steps SET status = CASE WHEN final = 'succeeded' THEN 'finished' ELSE 'failed' END, finished_at = now()
        WHERE task_id = parent.id AND number = parent.step;
    PERFORM minion_count_down(parent.id, 1);
END $$;

CREATE FUNCTION minion_settle_standing(t uuid, c integer, used jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    held standing_reservations;
BEGIN
    FOR held IN
        SELECT * FROM standing_reservations r
            WHERE r.task_id = t AND r.claim = c AND r.step = (used->>'step')::integer ORDER BY r.budget_id
    LOOP
        PERFORM 1 FROM standing_usage u
            WHERE u.budget_id = held.budget_id AND u.period_start = held.period_start FOR NO KEY UPDATE;
        -- Else the budget was removed.
        IF FOUND THEN
            PERFORM minion_use(held.budget_id, held.period_start, held.tokens, held.microdollars,
                               COALESCE((used->>'tokens')::bigint, held.tokens),
                               COALESCE((used->>'microdollars')::bigint, held.microdollars));
            DELETE FROM standing_reservations r
                WHERE r.task_id = t AND r.claim = c AND r.step = held.step AND r.budget_id = held.budget_id;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION minion_settle_step(t uuid, c integer, used jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM tasks WHERE id = t AND budget_ids IS NULL) THEN
        PERFORM minion_settle_standing(t, c, used);
        RETURN;
    END IF;
    PERFORM minion_lock_budgets((SELECT budget_ids FROM tasks WHERE id = t));
    UPDATE budgets b SET
            spent_tokens = spent_tokens - r.tokens + COALESCE((used->>'tokens')::bigint, r.tokens),
            spent_microdollars = spent_microdollars - r.microdollars
                + COALESCE((used->>'microdollars')::bigint, r.microdollars),
            changed_at = clock_timestamp()
        FROM reservations r
        WHERE r.budget_task_id = b.task_id AND r.task_id = t AND r.claim = c AND r.step = (used->>'step')::integer
          AND r.settled_at IS NULL;
    UPDATE reservations SET settled_at = now(), tokens = COALESCE((used->>'tokens')::bigint, tokens),
                            microdollars = COALESCE((used->>'microdollars')::bigint, microdollars)
        WHERE task_id = t AND claim = c AND step = (used->>'step')::integer AND settled_at IS NULL;
    PERFORM minion_settle_standing(t, c, used);
END $$;

CREATE FUNCTION minion_show_remote(t uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    reason text := minion_waits_for(t);
BEGIN
    UPDATE task_status SET wait_reason = reason, updated_at = now()
        WHERE task_id = t AND state = 'waiting' AND open_waits > 0 AND wait_reason <> 'answer' AND wait_reason <> reason;
    IF FOUND THEN
        INSERT INTO task_events (task_id, number, type, data) VALUES (
            t, 1 + COALESCE((SELECT max(number) FROM task_events WHERE task_id = t), 1), 'task.waiting',
            (SELECT jsonb_strip_nulls(jsonb_build_object('claim', claim, 'attempts', attempts, 'reason', wait_reason,
                                                         'due_at', due_at)) FROM task_status WHERE task_id = t));
    END IF;
END $$;

CREATE FUNCTION minion_signal(t uuid, signal text, content jsonb) RETURNS text
    LANGUAGE sql
    AS $$
    SELECT minion_signal_v2(t, signal, content, NULL)
$$;

CREATE FUNCTION minion_signal_v2(t uuid, signal text, content jsonb, content_order jsonb) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    now_at task_status;
    wait_step integer;
BEGIN
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    ELSIF now_at.state IN ('succeeded', 'failed', 'cancelled', 'expired') THEN
        RAISE EXCEPTION 'The task % has ended (%): it accepts no more signals.', t, now_at.state USING ERRCODE = 'MN009';
    END IF;
    PERFORM minion_check_json(content, 'The payload');
    INSERT INTO signals (task_id, name, payload, payload_order) VALUES (t, signal, content, content_order);
    IF now_at.state = 'waiting' THEN
        SELECT number INTO wait_step FROM steps WHERE task_id = t AND kind = 'wait' AND status = 'started'
            AND input->>'signal' = signal ORDER BY number LIMIT 1;
        IF FOUND AND minion_take_signal(t, wait_step, signal) THEN
            PERFORM minion_count_down(t, 1);
        END IF;
    END IF;
    RETURN (SELECT state FROM task_status WHERE task_id = t);
END $$;

CREATE FUNCTION minion_snooze(t uuid, c integer, result jsonb, delay interval, reason text) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    state_now text;
    waits_for text := CASE WHEN reason = 'budget' THEN result->'error'->>'waits_for' END;
BEGIN
    reason := COALESCE(waits_for, reason);
    IF reason = 'stopped' OR waits_for = 'handed_back' THEN
        result := result - 'error';
        delay := CASE WHEN waits_for = 'handed_back' THEN interval '10 s' END;
    END IF;
    state_now := minion_stop_running(t, c, result);
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    END IF;
    UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = reason, due_at = now() + delay,
                           updated_at = now()
        WHERE task_id = t;
    IF reason = 'handed_back' THEN
        UPDATE executions SET outcome = reason WHERE task_id = t AND claim = c;
    END IF;
    RETURN 'waiting';
END $$;

CREATE FUNCTION minion_spend(t uuid, c integer, journal jsonb, reserve jsonb, used jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    breach jsonb;
    flags jsonb;
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    -- A cancelled task begins no more steps.
    IF reserve IS NOT NULL AND NOT (SELECT cancel_requested FROM task_status WHERE task_id = t) THEN
        breach := minion_reserve(t, c, reserve);
        IF breach IS NULL AND EXISTS (SELECT 1 FROM standing_budgets) THEN
            breach := (
                SELECT minion_reserve_standing(t, c, reserve || jsonb_build_object('model', s.name))
                    FROM jsonb_to_recordset(journal) AS s (number integer, kind text, name text)
                    WHERE s.number = (reserve->>'step')::integer AND s.kind = 'model_call');
            IF breach IS NOT NULL THEN
                PERFORM minion_withdraw(t, c, (reserve->>'step')::integer);
            END IF;
        END IF;
        IF breach IS NOT NULL THEN
            RETURN jsonb_build_object('cancel', false, 'breach', breach);
        END IF;
    END IF;
    IF used IS NOT NULL THEN
        PERFORM minion_settle_step(t, c, used);
    END IF;
    flags := minion_write_steps(t, c, journal);
    -- A step without a reservation is repeated at once, with one.
    IF flags ? 'breach' AND NOT flags ? 'unreserved' THEN
        PERFORM minion_withdraw(t, c, (reserve->>'step')::integer);
    END IF;
    RETURN flags;
END $$;

CREATE FUNCTION minion_spend_lost() RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    lost record;
    sums record;
    found_ones integer := 0;
BEGIN
    FOR lost IN
        SELECT DISTINCT r.budget_id, r.period_start FROM standing_reservations r WHERE NOT EXISTS (
                SELECT 1 FROM task_status s WHERE s.task_id = r.task_id AND s.claim = r.claim AND s.state = 'running')
              AND NOT minion_is_batched(r.task_id, r.step, r.claim)
            ORDER BY 1, 2
    LOOP
        PERFORM 1 FROM standing_usage u
            WHERE u.budget_id = lost.budget_id AND u.period_start = lost.period_start FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        WITH gone AS (
            DELETE FROM standing_reservations r
                WHERE r.budget_id = lost.budget_id AND r.period_start = lost.period_start AND NOT EXISTS (
                    SELECT 1 FROM task_status s
                        WHERE s.task_id = r.task_id AND s.claim = r.claim AND s.state = 'running')
                  AND NOT minion_is_batched(r.task_id, r.step, r.claim)
                RETURNING *
        )
        SELECT COALESCE(sum(tokens), 0)::bigint AS tokens, COALESCE(sum(microdollars), 0)::bigint AS microdollars
            INTO sums FROM gone;
        PERFORM minion_use(lost.budget_id, lost.period_start, sums.tokens, sums.microdollars, sums.tokens,
                           sums.microdollars);
        found_ones := found_ones + 1;
    END LOOP;
    RETURN found_ones;
END $$;

CREATE FUNCTION minion_standing_approvals(s steps) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT COALESCE(jsonb_agg(a.one ORDER BY a.n), '[]')
        FROM jsonb_array_elements(s.approvals->'by') WITH ORDINALITY AS a (one, n)
        WHERE NOT EXISTS (SELECT FROM api_keys k WHERE k.id::text = a.one->>'key' AND k.revoked_at IS NOT NULL)
$$;

CREATE FUNCTION minion_standing_breach(t uuid, among uuid[], asked jsonb, moment timestamp with time zone) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object(
            'waits_for', 'standing_budget', 'budget', b.id, 'agent', b.scope || ' ' || b.name, 'scope', b.scope,
            'namespace', NULLIF(b.namespace, ''), 'name', NULLIF(b.name, ''), 'period', b.period, 'starts', p.starts,
            'ends', p.ends, 'what', f.what, 'limit', trim_scale(f.most), 'spent', trim_scale(f.spent),
            'reserved', trim_scale(f.held), 'asked', trim_scale(f.wanted), 'step', asked,
            'then', CASE WHEN f.wanted IS NULL THEN 'fail' WHEN f.spent + f.wanted <= f.most THEN 'wait' ELSE b.on_breach END)
        FROM minion_standing_of(t, asked->>'model') b
        CROSS JOIN LATERAL minion_period(b.period, b.timezone, moment) p
        LEFT JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = p.starts
        CROSS JOIN LATERAL (VALUES
            (1, 'tokens', b.tokens::numeric, COALESCE(u.spent_tokens, 0)::numeric, COALESCE(u.reserved_tokens, 0)::numeric,
                COALESCE((asked->>'tokens')::numeric, 0)),
            (2, 'dollars', b.microdollars / 1000000.0, COALESCE(u.spent_microdollars, 0) / 1000000.0,
                COALESCE(u.reserved_microdollars, 0) / 1000000.0,
                CASE WHEN asked->'microdollars' = 'null' THEN NULL
                     ELSE COALESCE((asked->>'microdollars')::numeric / 1000000, 0) END)
        ) AS f (nth, what, most, spent, held, wanted)
        WHERE b.on_breach <> 'alert' AND f.most IS NOT NULL AND (among IS NULL OR b.id = ANY (among))
          AND (f.wanted IS NULL OR f.wanted > 0 AND f.spent + f.held + f.wanted > f.most)
        ORDER BY b.id, f.nth LIMIT 1
$$;

CREATE FUNCTION minion_standing_of(t uuid, model text) RETURNS SETOF standing_budgets
    LANGUAGE sql STABLE
    AS $$
    SELECT b.* FROM task_status s
        CROSS JOIN LATERAL (VALUES ('installation', '', ''), ('namespace', s.namespace, ''),
                                   ('agent', s.namespace, s.agent_name), ('key', s.namespace, s.key),
                                   ('model', s.namespace, model)) AS v (scope, namespace, name)
        JOIN standing_budgets b ON b.scope = v.scope AND b.namespace = v.namespace AND b.name = v.name
        WHERE s.task_id = t ORDER BY b.id
$$;

CREATE FUNCTION minion_stop_of(ns text, agent text, k text) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object('scope', s.scope, 'namespace', NULLIF(s.namespace, ''), 'name', NULLIF(s.name, ''),
                              'reason', s.reason, 'created_at', s.created_at, 'created_by', s.created_by)
        FROM (VALUES (1, 'installation', '', ''), (2, 'namespace', ns, ''), (3, 'agent', ns, agent), (4, 'key', ns, k))
            AS v (width, scope, namespace, name)
        JOIN stops s ON s.scope = v.scope AND s.namespace = v.namespace AND s.name = v.name
        ORDER BY v.width LIMIT 1
$$;

CREATE FUNCTION minion_stop_running(t uuid, c integer, result jsonb) RETURNS text
    LANGUAGE plpgsql
    AS $$
DECLARE
    cancelled boolean;
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    SELECT cancel_requested INTO cancelled FROM task_status WHERE task_id = t;
    PERFORM minion_close_execution(t, c, CASE WHEN cancelled THEN 'cancelled' ELSE 'suspended' END, result);
    IF cancelled THEN
        PERFORM minion_settle(t, 'cancelled',
            '{"error": {"type": "cancelled", "message": "Cancelled while it ran."}}'::jsonb);
        RETURN 'cancelled';
    END IF;
    RETURN 'running';
END $$;

CREATE FUNCTION minion_store_content(value jsonb) RETURNS text
    LANGUAGE plpgsql
    AS $$
DECLARE
    hash text := encode(sha256(convert_to(value::text, 'UTF8')), 'hex');
BEGIN
    LOOP
        PERFORM 1 FROM contents c WHERE c.sha256 = hash FOR KEY SHARE;
        EXIT WHEN FOUND;
        INSERT INTO contents (sha256, value) VALUES (hash, value) ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN hash;
END $$;

CREATE FUNCTION minion_submit(agent text, input jsonb DEFAULT NULL::jsonb, capability text DEFAULT NULL::text, messages jsonb DEFAULT NULL::jsonb, idempotency_key text DEFAULT NULL::text, key text DEFAULT NULL::text, labels jsonb DEFAULT NULL::jsonb, priority integer DEFAULT NULL::integer, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, deadline timestamp with time zone DEFAULT NULL::timestamp with time zone, conversation_id text DEFAULT NULL::text, namespace text DEFAULT NULL::text, traceparent text DEFAULT NULL::text, unique_key text DEFAULT NULL::text, unique_while text DEFAULT 'running'::text, budget jsonb DEFAULT NULL::jsonb) RETURNS uuid
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
    SELECT minion_refuse_content(messages);
    SELECT minion_accept_bounded(jsonb_build_object(
        'agent', agent, 'capability', capability, 'messages', messages,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget)
        || CASE WHEN input IS NOT NULL OR messages IS NULL
                THEN jsonb_build_object('input', COALESCE(input, '{}'::jsonb)) ELSE '{}'::jsonb END)
$$;
REVOKE ALL ON FUNCTION minion_submit(agent text, input jsonb, capability text, messages jsonb, idempotency_key text, key text, labels jsonb, priority integer, run_at timestamp with time zone, deadline timestamp with time zone, conversation_id text, namespace text, traceparent text, unique_key text, unique_while text, budget jsonb) FROM PUBLIC;

CREATE FUNCTION minion_submit_json(agent text, input json, capability text DEFAULT NULL::text, idempotency_key text DEFAULT NULL::text, key text DEFAULT NULL::text, labels jsonb DEFAULT NULL::jsonb, priority integer DEFAULT NULL::integer, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, deadline timestamp with time zone DEFAULT NULL::timestamp with time zone, conversation_id text DEFAULT NULL::text, namespace text DEFAULT NULL::text, traceparent text DEFAULT NULL::text, unique_key text DEFAULT NULL::text, unique_while text DEFAULT 'running'::text, budget jsonb DEFAULT NULL::jsonb) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
DECLARE
    most text := minion_limit_inputs();
BEGIN
    input := COALESCE(input, '{}');
    PERFORM minion_check_json(input::jsonb, 'The input');
    PERFORM minion_refuse_repeated_keys(input);
    PERFORM minion_limit_inputs(most);
    RETURN minion_accept_bounded(jsonb_build_object(
        'agent', agent, 'input', input, 'input_order', minion_key_order(input), 'capability', capability,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget));
END $$;
REVOKE ALL ON FUNCTION minion_submit_json(agent text, input json, capability text, idempotency_key text, key text, labels jsonb, priority integer, run_at timestamp with time zone, deadline timestamp with time zone, conversation_id text, namespace text, traceparent text, unique_key text, unique_while text, budget jsonb) FROM PUBLIC;

CREATE FUNCTION minion_submitters(submitter text, key text, ns text, parent text[], replayed text[]) RETURNS text[]
    LANGUAGE sql STABLE
    AS $_$
    SELECT NULLIF(ARRAY(SELECT DISTINCT k.id FROM unnest(
        ARRAY[key, CASE WHEN submitter ~ '^api(:|$)' THEN 'bootstrap' END] || parent || replayed
        || (SELECT s.submitter_keys FROM schedules s WHERE submitter LIKE 'schedule:%' AND s.namespace = ns
                AND s.name = substr(submitter, 10))) AS k (id) WHERE k.id IS NOT NULL ORDER BY k.id), '{}')
$_$;

CREATE FUNCTION minion_suspend(t uuid, c integer, result jsonb, children jsonb, waits jsonb) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    wait record;
    state_now text;
    still_open integer := jsonb_array_length(children) + jsonb_array_length(waits);
    ns text := (SELECT namespace FROM tasks WHERE id = t);
BEGIN
    state_now := minion_stop_running(t, c, result);
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    END IF;
    still_open := still_open + minion_open_remote(t);
    WITH asked AS (
        SELECT child, n FROM jsonb_array_elements(children) WITH ORDINALITY AS a (child, n)
    ), made AS (
        SELECT a.task_id, a.n FROM minion_insert_tasks((
            SELECT COALESCE(jsonb_agg(child->'request' || jsonb_build_object(
                       'namespace', ns, 'parent_id', t, 'parent_step', child->'step') ORDER BY n), '[]')
                FROM asked)) WITH ORDINALITY AS a (task_id, created, n)
    )
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, child_id, program, line)
        SELECT t, (child->>'step')::integer, 'subtask', child->>'name', 'started', 'pure', child->>'request_hash', c,
               made.task_id, (child->>'program')::integer, (child->>'line')::integer
            FROM asked JOIN made USING (n) ORDER BY n;
    IF FOUND THEN
        PERFORM minion_notify_pending();
    END IF;
    FOR wait IN SELECT * FROM jsonb_to_recordset(waits)
            AS x (step integer, name text, request_hash text, seconds double precision, signal boolean,
                  approval jsonb, approval_order jsonb, program integer, line integer) LOOP
        INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, due_at,
                           program, line)
        VALUES (t, wait.step, 'wait', wait.name, 'started', 'pure', wait.request_hash, c,
                jsonb_build_object('signal', CASE WHEN wait.signal THEN wait.name END, 'seconds', wait.seconds)
                    || CASE WHEN wait.approval IS NULL THEN '{}'::jsonb
                            ELSE jsonb_build_object('approval', wait.approval->0) END,
                wait.approval_order, now() + wait.seconds * interval '1 s', wait.program, wait.line)
        -- A task that was woken by something else requests the same waits again.
        ON CONFLICT (task_id, number) DO NOTHING;
        IF wait.signal AND minion_take_signal(t, wait.step, wait.name) THEN
            still_open := still_open - 1;
        END IF;
    END LOOP;
    IF still_open = 0 THEN
        UPDATE task_status SET state = 'pending', worker_id = NULL, updated_at = now() WHERE task_id = t;
        PERFORM minion_notify_pending();
        RETURN 'pending';
    END IF;
    UPDATE task_status SET state = 'waiting', worker_id = NULL, open_waits = still_open, updated_at = now(),
            wait_reason = minion_waits_for(t),
            due_at = (SELECT min(w.due_at) FROM steps w
                          WHERE w.task_id = t AND w.kind = 'wait' AND w.status = 'started')
        WHERE task_id = t;
    RETURN 'waiting';
END $$;

CREATE FUNCTION minion_take(cap text, window_size integer, limited boolean) RETURNS TABLE(task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer, time_limit integer, priority smallint)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH RECURSIVE flight AS MATERIALIZED (
        SELECT f.namespace, f.capability, f.key, f.agent_name, f.state, count(*)::integer AS n
            FROM task_status f WHERE f.state IN ('queued', 'running') GROUP BY 1, 2, 3, 4, 5
    ), busy AS MATERIALIZED (
        SELECT namespace, key, sum(n) AS n FROM flight WHERE capability = cap GROUP BY 1, 2
    ), free AS (
        SELECT window_size - COALESCE(sum(f.n), 0) AS size FROM flight f WHERE f.state = 'queued' AND f.capability = cap
    ), room AS MATERIALIZED (
        -- A round looks at all queues, so it waits until half of the window is free.
        SELECT CASE WHEN size >= window_size / 2 THEN GREATEST(0, size) ELSE 0 END::integer AS size FROM free
    ), lines AS (
        -- Each queue with its first task.
        (SELECT p.namespace, p.key, p.agent_name, p.rank, p.task_id FROM task_status p
            WHERE p.state = 'pending' AND p.capability = cap AND (SELECT size FROM room) > 0
            ORDER BY p.namespace, p.key, p.agent_name, p.rank, p.task_id LIMIT 1)
        UNION ALL
        SELECT n.* FROM lines l CROSS JOIN LATERAL (
            SELECT p.namespace, p.key, p.agent_name, p.rank, p.task_id FROM task_status p
                WHERE p.state = 'pending' AND p.capability = cap
                  AND (p.namespace, p.key, p.agent_name) > (l.namespace, l.key, l.agent_name)
                ORDER BY p.namespace, p.key, p.agent_name, p.rank, p.task_id LIMIT 1) n
    ), permitted AS (
        SELECT l.* FROM lines l
            WHERE l.rank < minion_parked() AND (NOT (SELECT EXISTS (SELECT 1 FROM pauses)) OR NOT EXISTS (
                    SELECT 1 FROM pauses x WHERE x.namespace = l.namespace
                    AND (x.scope = 'capability' AND x.name = cap OR x.scope = 'agent' AND x.name = l.agent_name
                         OR x.scope = 'key' AND x.name = l.key)))
              AND (NOT (SELECT EXISTS (SELECT 1 FROM rate_holds)) OR NOT EXISTS (
                    SELECT 1 FROM rate_holds x WHERE x.namespace = l.namespace AND x.until_at > now()
                    AND (x.scope = 'capability' AND x.name = cap OR x.scope = 'agent' AND x.name = l.agent_name
                         OR x.scope = 'key' AND x.name = l.key)))
    ), nearest AS (
        -- The queues whose first tasks come first, as many as there is room: no other queue has a task among the chosen.
        -- With limits, every queue counts, because first tasks may be passed over.
        SELECT p.namespace, p.key, p.agent_name FROM permitted p
            LEFT JOIN busy b ON b.namespace = p.namespace AND b.key = p.key
            ORDER BY row_number() OVER (PARTITION BY p.namespace, p.key ORDER BY p.rank, p.task_id) + COALESCE(b.n, 0),
                     p.rank, p.task_id
            LIMIT CASE WHEN NOT limited THEN (SELECT size FROM room) END
    ), rules AS (
        SELECT l.namespace, l.key, l.agent_name,
               min(r.free) FILTER (WHERE r.scope = 'capability') AS free_capability,
               min(r.free) FILTER (WHERE r.scope = 'agent') AS free_agent,
               min(r.free) FILTER (WHERE r.scope = 'key') AS free_key
            FROM nearest l LEFT JOIN LATERAL (
                SELECT m.scope, LEAST(m.max_running - COALESCE(sum(f.n), 0),
                        CASE WHEN m.rate IS NOT NULL
                             THEN m.burst - COALESCE(sum(f.n) FILTER (WHERE f.state = 'queued'), 0) END) AS free
                    FROM minion_limits_of(l.namespace, cap, l.agent_name, l.key) m
                    LEFT JOIN flight f ON f.namespace = l.namespace
                        AND CASE m.scope WHEN 'capability' THEN f.capability = cap
                                         WHEN 'agent' THEN f.agent_name = l.agent_name ELSE f.key = l.key END
                    WHERE limited GROUP BY m.scope, m.max_running, m.rate, m.burst) r ON true
            GROUP BY 1, 2, 3
    ), first_ones AS (
        SELECT c.task_id, c.rank, u.*,
               row_number() OVER (PARTITION BY u.namespace, u.key ORDER BY c.rank, c.task_id) AS nth_of_key
            FROM rules u CROSS JOIN LATERAL (
                SELECT p.task_id, p.rank FROM task_status p
                    WHERE p.state = 'pending' AND p.capability = cap AND p.namespace = u.namespace AND p.key = u.key
                      AND p.agent_name = u.agent_name AND p.rank < minion_parked()
                    ORDER BY p.rank, p.task_id
                    -- Four times its share: enough if others have less, and little if there are many queues. Unused
                    -- room is left to the next round.
                    LIMIT LEAST(u.free_capability, u.free_agent, u.free_key, (SELECT size FROM room),
                                ceil(4.0 * (SELECT size FROM room) / (SELECT count(*) FROM rules))::integer)) c
            WHERE LEAST(u.free_capability, u.free_agent, u.free_key, 1) > 0
    ), turns AS (
        SELECT f.*, f.nth_of_key + COALESCE(b.n, 0) AS turn FROM first_ones f
            LEFT JOIN busy b ON b.namespace = f.namespace AND b.key = f.key
            WHERE f.nth_of_key <= COALESCE(f.free_key, f.nth_of_key)
    ), within_agents AS (
        -- The keys take turns in the room of an agent's limit, and below in that of the capability.
        SELECT t.*, row_number() OVER (PARTITION BY t.namespace, t.agent_name ORDER BY t.turn, t.rank, t.task_id)
                    AS nth_of_agent FROM turns t
    ), within_all AS (
        SELECT a.*, row_number() OVER (PARTITION BY a.namespace ORDER BY a.turn, a.rank, a.task_id) AS nth
            FROM within_agents a WHERE a.nth_of_agent <= COALESCE(a.free_agent, a.nth_of_agent)
    ), chosen AS (
        SELECT w.task_id FROM within_all w WHERE w.nth <= COALESCE(w.free_capability, w.nth)
            ORDER BY w.turn, w.rank, w.task_id LIMIT (SELECT size FROM room)
    ), taken AS (
        SELECT s.task_id FROM task_status s JOIN chosen c ON c.task_id = s.task_id
            WHERE s.state = 'pending' ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED
    ), queued AS (
        UPDATE task_status s SET state = 'queued', queued_at = now(), published = 1, published_at = now(),
                                 updated_at = now()
            FROM taken WHERE s.task_id = taken.task_id
            RETURNING s.task_id, s.claim, s.capability, s.priority, s.rank
    )
    SELECT q.task_id, q.claim, q.capability, t.agent_name, v.soft_time_limit, v.time_limit, q.priority
        FROM queued q JOIN tasks t ON t.id = q.task_id JOIN agent_versions v ON v.id = t.agent_version_id
        ORDER BY q.rank, q.task_id;
END $$;

CREATE FUNCTION minion_take_now(t uuid, lease interval) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    cap text := (SELECT capability FROM task_status WHERE task_id = t AND state = 'pending' AND conversation_id IS NULL);
    slots integer := (SELECT sum(w.slots) FROM workers w
                          WHERE w.status = 'online' AND w.last_seen > now() - lease AND w.capabilities @> ARRAY[cap]);
BEGIN
    IF slots > (SELECT count(*) FROM (
                    SELECT FROM task_status f WHERE f.state IN ('queued', 'running') AND f.capability = cap LIMIT slots) AS busy)
            AND NOT EXISTS (
                SELECT FROM task_status p WHERE p.state = 'pending' AND p.capability = cap AND p.task_id <> t)
            AND NOT EXISTS (SELECT FROM pauses) AND NOT EXISTS (SELECT FROM limits WHERE scope <> 'model')
            AND NOT EXISTS (SELECT FROM rate_holds WHERE until_at > now()) THEN
        UPDATE task_status SET state = 'queued', queued_at = now(), published = 1, published_at = now(), updated_at = now()
            WHERE task_id = t;
        RETURN true;
    END IF;
    PERFORM minion_notify_pending();
    RETURN false;
END $$;

CREATE FUNCTION minion_take_signal(t uuid, wait_step integer, signal text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    taken signals;
BEGIN
    UPDATE signals SET step = wait_step WHERE id = (
            SELECT id FROM signals WHERE task_id = t AND name = signal AND step IS NULL ORDER BY id LIMIT 1)
        RETURNING * INTO taken;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE steps SET status = 'finished', finished_at = now(), output_order = taken.payload_order,
            output = jsonb_build_object('signal', signal, 'payload', taken.payload, 'sent_at', taken.created_at)
        WHERE task_id = t AND number = wait_step;
    RETURN true;
END $$;

CREATE FUNCTION minion_tidy_calls(most integer) RETURNS integer
    LANGUAGE plpgsql
    SET jit TO 'off'
    AS $$
DECLARE
    over record;
    tidied integer := 0;
BEGIN
    FOR over IN
        -- Two parts, each with an index: most calls are in batches, and have no answer.
        SELECT b.* FROM batch_calls b WHERE b.result IS NOT NULL AND (
                EXISTS (SELECT 1 FROM task_outcomes o WHERE o.task_id = b.task_id)
                OR EXISTS (SELECT 1 FROM steps s WHERE s.task_id = b.task_id AND s.number = b.step AND s.status <> 'started'))
            UNION ALL
            SELECT b.* FROM batch_calls b WHERE b.batch IS NULL AND b.result IS NULL
                AND EXISTS (SELECT 1 FROM task_outcomes o WHERE o.task_id = b.task_id)
            LIMIT most
    LOOP
        PERFORM 1 FROM task_status WHERE task_id = over.task_id FOR NO KEY UPDATE;
        -- It may have been put into a batch, or have begun again, since.
        DELETE FROM batch_calls b WHERE b.task_id = over.task_id AND b.step = over.step AND b.claim = over.claim
            AND b.batch IS NOT DISTINCT FROM over.batch AND (b.result IS NULL) = (over.result IS NULL);
        CONTINUE WHEN NOT FOUND;
        tidied := tidied + 1;
        IF over.result IS NULL THEN
            PERFORM minion_settle_step(over.task_id, over.claim,
                jsonb_build_object('step', over.step, 'tokens', 0, 'microdollars', 0));
        ELSE
            UPDATE steps SET status = 'failed', finished_at = now(), usage = over.usage - 'cost_microdollars',
                    cost_microdollars = COALESCE((over.usage->>'cost_microdollars')::bigint, 0),
                    error = '{"type": "cancelled", "message": "The answer came when the task had ended."}'
                WHERE task_id = over.task_id AND number = over.step AND status = 'started';
            UPDATE executions SET input_tokens = input_tokens + minion_used(over.usage, 'input_tokens'),
                    output_tokens = output_tokens + minion_used(over.usage, 'output_tokens'),
                    cost_microdollars = cost_microdollars + minion_used(over.usage, 'cost_microdollars')
                WHERE FOUND AND task_id = over.task_id AND claim = over.claim;
        END IF;
    END LOOP;
    DELETE FROM message_batches m WHERE m.ended_at < now() - interval '30 days';
    RETURN tidied;
END $$;

CREATE FUNCTION minion_tidy_remote(most integer) RETURNS integer
    LANGUAGE plpgsql
    SET jit TO 'off'
    AS $$
DECLARE
    over remote_calls;
    tidied integer := 0;
BEGIN
    FOR over IN
        SELECT r.* FROM remote_calls r WHERE r.state <> 'cancelling' AND (
            EXISTS (SELECT 1 FROM task_outcomes o WHERE o.task_id = r.task_id)
            OR EXISTS (SELECT 1 FROM steps s WHERE s.task_id = r.task_id AND s.number = r.step AND s.status <> 'started'))
            LIMIT most FOR UPDATE SKIP LOCKED
    LOOP
        IF over.remote_id IS NOT NULL AND over.state <> 'done' THEN
            UPDATE remote_calls SET state = 'cancelling', due_at = now(), failures = 0, failing_since = NULL,
                    message = NULL, requests = NULL, form = NULL, proposed = NULL, answer = NULL
                WHERE task_id = over.task_id AND step = over.step;
        ELSE
            DELETE FROM remote_calls WHERE task_id = over.task_id AND step = over.step;
        END IF;
        tidied := tidied + 1;
    END LOOP;
    RETURN tidied;
END $$;

CREATE FUNCTION minion_traces_due(most integer) RETURNS TABLE(low bigint, since timestamp with time zone, seen_at timestamp with time zone, horizon bigint, next bigint, first bigint, nth bigint)
    LANGUAGE sql STABLE
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
    SELECT s.exported_below, s.since, s.seen_at, x.horizon, x.next,
           LEAST((SELECT ended_in FROM steps WHERE ended_in >= s.exported_below AND ended_in < x.horizon
                      ORDER BY ended_in LIMIT 1),
                 (SELECT ended_in FROM executions WHERE ended_in >= s.exported_below AND ended_in < x.horizon
                      ORDER BY ended_in LIMIT 1),
                 (SELECT ended_in FROM task_outcomes WHERE ended_in >= s.exported_below AND ended_in < x.horizon
                      ORDER BY ended_in LIMIT 1)),
           LEAST((SELECT ended_in FROM steps WHERE ended_in >= s.exported_below AND ended_in < x.horizon
                      ORDER BY ended_in OFFSET most LIMIT 1),
                 (SELECT ended_in FROM executions WHERE ended_in >= s.exported_below AND ended_in < x.horizon
                      ORDER BY ended_in OFFSET most LIMIT 1),
                 (SELECT ended_in FROM task_outcomes WHERE ended_in >= s.exported_below AND ended_in < x.horizon
                      ORDER BY ended_in OFFSET most LIMIT 1))
        FROM tracing_state s CROSS JOIN (
            SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
                   pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) x
$$;

CREATE FUNCTION minion_transition_allowed(before text, after text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT (before, after) IN (
        ('scheduled', 'pending'), ('pending', 'queued'), ('queued', 'running'), ('queued', 'pending'),
        ('running', 'waiting'), ('waiting', 'pending'), ('running', 'pending'), ('running', 'succeeded'),
        ('pending', 'failed'), ('running', 'failed'), ('waiting', 'failed'),
        ('scheduled', 'cancelled'), ('pending', 'cancelled'), ('queued', 'cancelled'), ('running', 'cancelled'),
        ('waiting', 'cancelled'), ('scheduled', 'expired'), ('pending', 'expired'), ('queued', 'expired'),
        ('running', 'expired'), ('waiting', 'expired'))
$$;

CREATE FUNCTION minion_undecided(t uuid) RETURNS SETOF steps
    LANGUAGE sql STABLE
    AS $$
    SELECT s.* FROM steps s JOIN task_status n ON n.task_id = s.task_id
        WHERE s.task_id = t AND s.status = 'started' AND n.state = 'waiting'
          AND (s.input ? 'approval' AND s.kind = 'wait' OR minion_asks(s)
               OR n.wait_reason = 'answer' AND s.effect = 'unsafe')
        ORDER BY s.number
$$;

CREATE FUNCTION minion_unqueue(t uuid, expected integer) RETURNS text
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    UPDATE task_status SET state = 'pending', updated_at = now()
        WHERE task_id = t AND state = 'queued' AND claim = expected;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM minion_notify_pending();
    RETURN 'pending';
END $$;

CREATE FUNCTION minion_use(budget uuid, starts timestamp with time zone, freed_tokens bigint, freed_microdollars bigint, used_tokens bigint, used_microdollars bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE standing_usage u SET reserved_tokens = reserved_tokens - freed_tokens,
                                reserved_microdollars = reserved_microdollars - freed_microdollars,
                                spent_tokens = spent_tokens + used_tokens,
                                spent_microdollars = spent_microdollars + used_microdollars
        WHERE u.budget_id = budget AND u.period_start = starts;
    PERFORM minion_alert(budget, starts, GREATEST(100.0 * u.spent_tokens / b.tokens,
                                                  100.0 * u.spent_microdollars / b.microdollars))
        FROM standing_budgets b JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = starts
        WHERE b.id = budget;
END $$;

CREATE FUNCTION minion_used(usage jsonb, name text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE jsonb_typeof(usage->name) WHEN 'number' THEN LEAST(GREATEST((usage->name)::numeric, 0), 1e12)::bigint
                ELSE 0 END
$$;

CREATE FUNCTION minion_uuidv7() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$SELECT uuidv7()$$;

CREATE FUNCTION minion_waits_for(t uuid) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN bool_or(s.input ? 'approval') OR EXISTS (
                    SELECT 1 FROM remote_calls r WHERE r.task_id = t AND r.state = 'input_required') THEN 'approval'
                WHEN bool_or(s.kind = 'subtask') THEN 'subtask'
                WHEN bool_or(s.input->>'signal' IS NOT NULL) THEN 'signal'
                WHEN minion_open_remote(t) > 0 THEN 'remote_task' ELSE 'timer' END
        FROM steps s WHERE s.task_id = t AND s.kind IN ('subtask', 'wait') AND s.status = 'started'
$$;

CREATE FUNCTION minion_wake_due(most integer) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    woken integer;
    late record;
    over integer;
BEGIN
    WITH due AS (
        SELECT task_id FROM task_status
            WHERE state IN ('scheduled', 'waiting') AND due_at <= now() AND open_waits = 0
            ORDER BY due_at LIMIT most FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE task_status s SET state = 'pending', due_at = NULL, wait_reason = NULL, updated_at = now(),
                             rank = CASE WHEN s.state = 'scheduled' THEN minion_place(
                                             s.task_id, s.namespace, s.conversation_id, s.due_at, s.priority)
                                         ELSE s.rank END
        FROM due WHERE s.task_id = due.task_id;
    GET DIAGNOSTICS woken = ROW_COUNT;
    FOR late IN
        SELECT task_id FROM task_status WHERE state = 'waiting' AND due_at <= now() AND open_waits > 0
            ORDER BY due_at LIMIT most FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        UPDATE steps SET status = 'finished', output = '{"timed_out": true}', finished_at = now()
            WHERE task_id = late.task_id AND kind = 'wait' AND status = 'started' AND due_at <= now();
        GET DIAGNOSTICS over = ROW_COUNT;
        woken := woken + minion_count_down(late.task_id, over)::integer;
    END LOOP;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN woken;
END $$;

CREATE FUNCTION minion_wake_funded(most integer, owner uuid DEFAULT NULL::uuid) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    waiter record;
    breach jsonb;
    together jsonb;
    root uuid;
    tokens bigint;
    microdollars bigint;
    woken integer := 0;
BEGIN
    FOR waiter IN
        SELECT * FROM (
            SELECT s.task_id, s.claim, s.rank, k.root_id, k.budget_ids, e.error->'step' AS asked
                FROM task_status s JOIN tasks k ON k.id = s.task_id
                JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim
                JOIN budgets b ON b.task_id = (e.error->>'budget')::uuid
                WHERE s.state = 'waiting' AND s.wait_reason = 'budget' AND (owner IS NULL OR b.task_id = owner)
                  -- For the others nothing has changed. (A budget that fails tasks has waiting ones only while running
                  -- steps hold the missing amounts; those steps may die without a change.)
                  AND (b.on_breach = 'fail' OR b.changed_at <> (e.error->>'at')::timestamptz)
                -- Random, so that none is always left out if there are more than `most`.
                ORDER BY random() LIMIT most FOR NO KEY UPDATE OF s SKIP LOCKED) w
            ORDER BY w.root_id, w.rank, w.task_id
    LOOP
        IF waiter.root_id IS DISTINCT FROM root THEN
            root := waiter.root_id;
            tokens := 0;
            microdollars := 0;
        END IF;
        breach := minion_breach(waiter.budget_ids, waiter.asked);
        IF breach->>'then' <> 'fail' THEN
            -- The task waits for the next change of the budget that it lacks now.
            UPDATE executions SET error = error || jsonb_build_object('budget', breach->'budget', 'at', breach->'at')
                WHERE task_id = waiter.task_id AND claim = waiter.claim;
            CONTINUE;
        ELSIF breach IS NULL THEN
            together := waiter.asked || jsonb_build_object(
                'tokens', tokens + COALESCE((waiter.asked->>'tokens')::bigint, 0),
                'microdollars', microdollars + COALESCE((waiter.asked->>'microdollars')::bigint, 0));
            -- There is room, but the tasks before it may take it. It is checked again, since they may leave some.
            CONTINUE WHEN minion_breach(waiter.budget_ids, together) IS NOT NULL;
            tokens := together->>'tokens';
            microdollars := together->>'microdollars';
        END IF;
        UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now() WHERE task_id = waiter.task_id;
        woken := woken + 1;
    END LOOP;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN woken;
END $$;

CREATE FUNCTION minion_wake_standing(most integer) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    woken integer;
BEGIN
    WITH waiters AS MATERIALIZED (
        SELECT s.task_id, s.rank, (e.error->>'budget')::uuid AS budget,
               COALESCE((e.error->'step'->>'tokens')::numeric, 0) AS tokens,
               COALESCE((e.error->'step'->>'microdollars')::numeric, 0) AS microdollars
            FROM task_status s JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim
            WHERE s.wait_reason = 'standing_budget'
    ), room AS MATERIALIZED (
        SELECT b.id, b.on_breach, b.tokens - COALESCE(u.spent_tokens, 0) AS tokens,
               b.microdollars - COALESCE(u.spent_microdollars, 0) AS microdollars,
               COALESCE(u.reserved_tokens, 0) AS held_tokens, COALESCE(u.reserved_microdollars, 0) AS held_microdollars
            FROM standing_budgets b CROSS JOIN LATERAL minion_period(b.period, b.timezone, clock_timestamp()) p
            LEFT JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = p.starts
            WHERE b.id IN (SELECT w.budget FROM waiters w)
    ), judged AS (
        SELECT w.*, r.tokens - r.held_tokens AS free_tokens, r.microdollars - r.held_microdollars AS free_microdollars,
               r.id IS NULL OR r.on_breach = 'alert' OR r.on_breach = 'fail' AND NOT (
                   COALESCE(w.tokens <= r.tokens, true) AND COALESCE(w.microdollars <= r.microdollars, true)) AS anyhow
            FROM waiters w LEFT JOIN room r ON r.id = w.budget
    ), fitting AS (
        -- The first ones together, of those that fit alone: the others are looked at again when these have reserved.
        SELECT j.*, sum(j.tokens) OVER line AS all_tokens, sum(j.microdollars) OVER line AS all_microdollars FROM judged j
            WHERE j.anyhow OR COALESCE(j.tokens <= j.free_tokens, true)
                              AND COALESCE(j.microdollars <= j.free_microdollars, true)
            WINDOW line AS (PARTITION BY j.budget, j.anyhow ORDER BY j.rank, j.task_id)
    ), chosen AS (
        SELECT f.task_id FROM fitting f
            WHERE f.anyhow OR COALESCE(f.all_tokens <= f.free_tokens, true)
                              AND COALESCE(f.all_microdollars <= f.free_microdollars, true)
            ORDER BY f.rank, f.task_id LIMIT most
    )
    UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now()
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                -- As an array: a join may compare each waiting task with each chosen one.
                WHERE s.task_id = ANY (ARRAY(SELECT task_id FROM chosen))
                  AND s.state = 'waiting' AND s.wait_reason = 'standing_budget'
                ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN woken;
END $$;

CREATE FUNCTION minion_wake_stopped(after uuid, most integer, OUT woken integer, OUT last uuid) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    looked_at uuid[] := ARRAY(
        SELECT s.task_id FROM task_status s
            WHERE s.wait_reason = 'stopped' AND s.task_id > COALESCE(after, '00000000-0000-0000-0000-000000000000')
            ORDER BY s.task_id LIMIT most);
BEGIN
    last := looked_at[most];
    UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now()
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                WHERE s.task_id = ANY (looked_at) AND s.state = 'waiting' AND s.wait_reason = 'stopped'
                  AND minion_stop_of(s.namespace, s.agent_name, s.key) IS NULL
                ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
END $$;

CREATE FUNCTION minion_withdraw(t uuid, c integer, withdrawn integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    WITH gone AS (DELETE FROM reservations WHERE task_id = t AND claim = c AND step = withdrawn RETURNING *)
    UPDATE budgets b SET spent_tokens = spent_tokens - g.tokens, spent_microdollars = spent_microdollars - g.microdollars,
                         spent_steps = spent_steps - g.steps, changed_at = clock_timestamp()
        FROM gone g WHERE b.task_id = g.budget_task_id;
    PERFORM minion_settle_standing(t, c, jsonb_build_object('step', withdrawn, 'tokens', 0, 'microdollars', 0));
END $$;

CREATE FUNCTION minion_within_bounds(request jsonb, bounds jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    who text := bounds->>'role';
    ns text := bounds->>'namespace';
    bound text := bounds->>'tenant';
    agents text[] := ARRAY(SELECT jsonb_array_elements_text(bounds->'agents'));
    any_of boolean := right(bound, 1) = '*';
    tenant text := COALESCE(request->>'key', CASE WHEN NOT any_of THEN bound END);
    field text;
    named text;
BEGIN
    IF COALESCE(request->>'namespace', ns) <> ns THEN
        RAISE EXCEPTION 'The role % may submit tasks to the namespace % only: leave `namespace` out.', who,
            quote_literal(ns) USING ERRCODE = 'MN010';
    END IF;
    request := request || jsonb_build_object('namespace', ns);
    IF agents <> '{}' THEN
        request := request || jsonb_build_object('agent', COALESCE(
            request->>'agent', CASE cardinality(agents) WHEN 1 THEN agents[1] END));
        IF COALESCE(request->>'agent' <> ALL (agents), true) THEN
            RAISE EXCEPTION 'The role % may submit tasks only to: %. `agent` must name one of them.', who,
                array_to_string(agents, ', ') USING ERRCODE = 'MN010';
        END IF;
    END IF;
    IF bound IS NOT NULL THEN
        IF (CASE WHEN any_of THEN starts_with(tenant, left(bound, -1)) ELSE tenant = bound END) IS NOT TRUE
                OR position(chr(31) IN tenant) > 0 THEN
            RAISE EXCEPTION 'The role % may submit tasks of the tenant % only: `key` must %.', who,
                quote_literal(bound), CASE WHEN any_of THEN 'begin with ' || quote_literal(left(bound, -1))
                                                   ELSE 'be ' || quote_literal(bound) END USING ERRCODE = 'MN010';
        END IF;
        request := request || jsonb_build_object('key', tenant);
        FOREACH field IN ARRAY '{conversation_id,idempotency_key,unique_key}'::text[] LOOP
            named := NULLIF(request->>field, '');
            CONTINUE WHEN named IS NULL;
            IF position(chr(31) IN named) > 0 THEN
                RAISE EXCEPTION 'Invalid %: it must not contain the character U+001F.', field USING ERRCODE = 'MN007';
            ELSIF char_length(tenant) + 1 + char_length(named) > 255 THEN
                RAISE EXCEPTION '% is too long: it and the tenant key must have at most 254 characters together.', field
                    USING ERRCODE = 'MN007';
            END IF;
            request := request || jsonb_build_object(field, tenant || chr(31) || named);
        END LOOP;
    END IF;
    RETURN request;
END $$;

CREATE FUNCTION minion_write_steps(t uuid, c integer, journal jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    refusal jsonb;
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT 1 FROM stops) OR EXISTS (SELECT 1 FROM standing_budgets)
            OR EXISTS (SELECT 1 FROM batch_calls WHERE task_id = t) THEN
        refusal := minion_refusal(t, c, journal);
        IF refusal IS NOT NULL THEN
            RETURN refusal;
        END IF;
    END IF;
    PERFORM minion_put_steps(t, c, journal);
    RETURN (SELECT jsonb_build_object('cancel', cancel_requested) FROM task_status WHERE task_id = t);
END $$;
