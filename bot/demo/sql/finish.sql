CREATE SEQUENCE invoice_number_seq START 20260001 INCREMENT 7;
SELECT nextval('invoice_number_seq');

ALTER TABLE order_items ADD FOREIGN KEY (order_id, placed_at) REFERENCES orders (id, placed_at);
ALTER TABLE order_items ADD FOREIGN KEY (product_id) REFERENCES products (id);
ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users (id);
ALTER TABLE documents ADD FOREIGN KEY (owner_id) REFERENCES users (id);

CREATE FUNCTION note_change_of_user() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_log (what, detail) VALUES (lower(TG_OP) || ' user', jsonb_build_object('user', NEW.id));
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION note_change_of_user IS 'Every new or changed account leaves a line in the audit log.';
CREATE TRIGGER users_are_noted AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION note_change_of_user();

CREATE VIEW "Newest orders" AS
SELECT orders.id, users.name AS "who's it", orders.total_cents, orders.placed_at
FROM orders JOIN users ON users.id = orders.user_id
ORDER BY orders.placed_at DESC LIMIT 100;
COMMENT ON VIEW "Newest orders" IS 'A name with a space and a quote, as real schemas have them.';

CREATE MATERIALIZED VIEW revenue_by_month AS
SELECT date_trunc('month', placed_at) AS month, count(*) AS orders, sum(total_cents) AS cents
FROM orders GROUP BY 1;
CREATE UNIQUE INDEX revenue_by_month_key ON revenue_by_month (month);

GRANT USAGE ON SCHEMA public TO superprismora_app, superprismora_reporting;
GRANT SELECT, INSERT, UPDATE ON users, orders, order_items, documents, audit_log TO superprismora_app;
GRANT SELECT ON products, "Newest orders", revenue_by_month TO superprismora_app;
GRANT USAGE ON SEQUENCE order_number_seq, invoice_number_seq TO superprismora_app;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO superprismora_reporting;
