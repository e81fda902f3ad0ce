-- How far ended work was exported as traces, and what is next: see `orchestrator/tracing/state.py`.

-- `low`: what ended in transactions below it is exported. All transactions below `horizon` have ended, none at `next` or
-- above has begun. `first`: the first end between `low` and `horizon`; `nth`: the first one that has `most` ends of its
-- table before it. Each is read at one place of an index, however large the tables and the backlog are.
CREATE OR REPLACE FUNCTION minion_traces_due(most integer) RETURNS TABLE (
    low bigint, since timestamptz, seen_at timestamptz, horizon bigint, next bigint, first bigint, nth bigint)
LANGUAGE sql STABLE SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
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
