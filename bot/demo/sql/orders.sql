CREATE SEQUENCE order_number_seq;
CREATE TABLE orders (
    id bigint NOT NULL DEFAULT nextval('order_number_seq'),
    user_id bigint NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT now(),
    status text NOT NULL DEFAULT 'placed' CHECK (status IN ('placed', 'paid', 'shipped', 'returned')),
    total_cents bigint NOT NULL CHECK (total_cents >= 0),
    note text
) PARTITION BY RANGE (placed_at);
ALTER SEQUENCE order_number_seq OWNED BY orders.id;
COMMENT ON TABLE orders IS 'One partition for each month; `orders_rest` takes what fits none.';

DO $$
DECLARE
    first timestamptz;
BEGIN
    FOR first IN
        SELECT generate_series(
            date_trunc('month', current_setting('demo.until')::timestamptz) - interval '12 months',
            date_trunc('month', current_setting('demo.until')::timestamptz) + interval '1 month',
            interval '1 month'
        )
    LOOP
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF orders FOR VALUES FROM (%L) TO (%L)',
            'orders_' || to_char(first, 'YYYY_MM'), first, first + interval '1 month'
        );
    END LOOP;
END
$$;
CREATE TABLE orders_rest PARTITION OF orders DEFAULT;

-- The moment follows from the number, so that order_items can be made at the same time by another session.
INSERT INTO orders (id, user_id, placed_at, status, total_cents, note)
SELECT
    n,
    1 + (n * 48271) % current_setting('demo.users')::bigint,
    current_setting('demo.until')::timestamptz
        - (current_setting('demo.orders')::bigint - n) * current_setting('demo.order_every')::interval,
    (ARRAY['placed', 'paid', 'shipped', 'shipped', 'shipped', 'returned'])[1 + n % 6],
    500 + (n * 7919) % 250000,
    CASE WHEN n % 4 = 0 THEN 'gift, wrap it; reference ' || substr(md5(n::text), 1, 12) END
FROM generate_series(1, current_setting('demo.orders')::bigint) AS n;

SELECT setval('order_number_seq', (SELECT max(id) FROM orders));
ALTER TABLE orders ADD PRIMARY KEY (id, placed_at);
CREATE INDEX orders_user ON orders (user_id, placed_at);
