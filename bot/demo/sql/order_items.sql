CREATE TABLE order_items (
    order_id bigint NOT NULL,
    line smallint NOT NULL,
    placed_at timestamptz NOT NULL,
    product_id bigint NOT NULL,
    quantity smallint NOT NULL CHECK (quantity > 0),
    price_cents integer NOT NULL
);
COMMENT ON COLUMN order_items.placed_at IS 'That of the order: part of the key of its partition.';

INSERT INTO order_items (order_id, line, placed_at, product_id, quantity, price_cents)
SELECT
    n,
    line,
    current_setting('demo.until')::timestamptz
        - (current_setting('demo.orders')::bigint - n) * current_setting('demo.order_every')::interval,
    1 + (n * 31 + line) % 1000,
    1 + n % 3,
    500 + (n * line * 613) % 90000
FROM generate_series(1, current_setting('demo.orders')::bigint) AS n, generate_series(1, 1 + n % 2) AS line;

ALTER TABLE order_items ADD PRIMARY KEY (order_id, line);
