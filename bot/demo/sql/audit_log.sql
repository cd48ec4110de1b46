CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL DEFAULT current_user,
    what text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);

INSERT INTO audit_log (at, actor, what, detail)
SELECT
    current_setting('demo.until')::timestamptz - (current_setting('demo.audit')::bigint - n) * interval '30 seconds',
    'superprismora_app',
    (ARRAY['signed in', 'signed out', 'placed an order', 'changed settings'])[1 + n % 4],
    jsonb_build_object('user', 1 + (n * 69621) % current_setting('demo.users')::bigint, 'session', md5(n::text))
FROM generate_series(1, current_setting('demo.audit')::bigint) AS n;

ALTER TABLE audit_log ADD PRIMARY KEY (id);
CREATE INDEX audit_log_at ON audit_log USING brin (at);
