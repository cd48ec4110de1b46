CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE SCHEMA app AUTHORIZATION app;
CREATE SCHEMA "Sché ma ""x""" AUTHORIZATION "Rôle ""q"" x";
GRANT USAGE ON SCHEMA app TO reporting;
CREATE SCHEMA ext;
GRANT USAGE ON SCHEMA ext TO PUBLIC;
CREATE EXTENSION pg_trgm SCHEMA ext;

SET ROLE app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'it''s "fine"');
CREATE DOMAIN app.email AS public.citext CHECK (VALUE ~ '@');
CREATE TYPE app.pair AS (left_part int, right_part text);
CREATE TABLE app.users (
    id bigint GENERATED ALWAYS AS IDENTITY (START 10 INCREMENT 5) PRIMARY KEY,
    email app.email UNIQUE NOT NULL,
    gone text,
    mood app.mood DEFAULT 'ok',
    tags public.hstore,
    full_name text,
    upper_name text GENERATED ALWAYS AS (upper(full_name)) STORED,
    both_parts app.pair
);
ALTER TABLE app.users DROP COLUMN gone;
ALTER TABLE app.users ADD COLUMN added timestamptz DEFAULT '2026-01-01 00:00:00+00' NOT NULL;
COMMENT ON TABLE app.users IS 'people; DROP DATABASE x; -- ''quoted''';
COMMENT ON COLUMN app.users.email IS 'where to write';
CREATE INDEX users_name ON app.users USING gin (full_name ext.gin_trgm_ops);
INSERT INTO app.users (email, full_name, mood, tags)
    SELECT 'u' || g || '@x.example', 'Näme ' || g, 'it''s "fine"', 'a=>1'::public.hstore FROM generate_series(1, 500) g;

CREATE TABLE app.orders (
    id bigserial, user_id bigint REFERENCES app.users ON DELETE CASCADE, placed date NOT NULL, total numeric(12, 2),
    PRIMARY KEY (id, placed)
) PARTITION BY RANGE (placed);
CREATE TABLE app.orders_2025 PARTITION OF app.orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE app.orders_2026 (placed date NOT NULL, id bigint NOT NULL DEFAULT 1, total numeric(12, 2), user_id bigint);
ALTER TABLE app.orders ATTACH PARTITION app.orders_2026 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE app.orders_rest PARTITION OF app.orders DEFAULT;
CREATE INDEX orders_user ON app.orders (user_id);
INSERT INTO app.orders (user_id, placed, total)
    SELECT 10 + 5 * (g % 100), '2025-06-01'::date + g, g * 1.5 FROM generate_series(1, 700) g;

CREATE TABLE app.parent (a int, b text);
CREATE TABLE app.child (c int) INHERITS (app.parent);
INSERT INTO app.parent VALUES (1, 'parent');
INSERT INTO app.child VALUES (2, 'child', 3), (4, 'child', 5);
CREATE TABLE app.empty (id int PRIMARY KEY);
CREATE UNLOGGED TABLE app.unlogged AS SELECT 1 AS one;
CREATE SEQUENCE app.lonely START 42 MINVALUE -5 CYCLE;
SELECT nextval('app.lonely'), nextval('app.lonely');
CREATE SEQUENCE app."never'used";

CREATE FUNCTION app.total(who bigint) RETURNS numeric LANGUAGE sql STABLE SECURITY DEFINER
    AS 'SELECT sum(total) FROM app.orders WHERE user_id = who';
CREATE PROCEDURE app.nothing() LANGUAGE plpgsql AS $$BEGIN NULL; END$$;
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.added := now(); RETURN NEW; END$$;
CREATE TRIGGER touched BEFORE UPDATE ON app.users FOR EACH ROW WHEN (OLD.full_name IS DISTINCT FROM NEW.full_name)
    EXECUTE FUNCTION app.touch();
CREATE AGGREGATE app.product(numeric) (SFUNC = numeric_mul, STYPE = numeric, INITCOND = '1');
CREATE VIEW app.rich WITH (security_barrier) AS SELECT user_id, sum(total) AS spent FROM app.orders GROUP BY 1;
CREATE MATERIALIZED VIEW app.months AS SELECT date_trunc('month', placed) AS month, count(*) FROM app.orders GROUP BY 1;
CREATE UNIQUE INDEX ON app.months (month);
CREATE MATERIALIZED VIEW app.names AS SELECT u.id, u.full_name, count(o.id) AS orders
    FROM app.users u LEFT JOIN app.orders o ON o.user_id = u.id GROUP BY u.id;
CREATE UNIQUE INDEX ON app.names (id);
CREATE STATISTICS app.orders_stats (dependencies) ON user_id, total FROM app.orders;
CREATE RULE quiet AS ON DELETE TO app.empty DO INSTEAD NOTHING;
ALTER TABLE app.users ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON app.users FOR SELECT TO reporting USING (id % 2 = 0);
GRANT SELECT (id, email) ON app.users TO reporting;
GRANT SELECT ON app.orders TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO reporting;
RESET ROLE;

-- A table of another owner in a schema where that owner may not create, and one of the superuser.
CREATE TABLE app.reports AS SELECT g AS id, repeat('x', 50) AS body FROM generate_series(1, 300) g;
ALTER TABLE app.reports OWNER TO reporting;
CREATE TABLE public.by_superuser (id int PRIMARY KEY, note text DEFAULT 'Ünï');
INSERT INTO public.by_superuser SELECT g FROM generate_series(1, 20) g;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO app;
CREATE TABLE "Sché ma ""x"""."Täble 'q' ""d"" %s ;" ("Cölumn ""1""" int, "select" text);
INSERT INTO "Sché ma ""x"""."Täble 'q' ""d"" %s ;" SELECT g, E'tab\tnew\nline \\ "q"' FROM generate_series(1, 33) g;
ALTER TABLE "Sché ma ""x"""."Täble 'q' ""d"" %s ;" OWNER TO "Rôle ""q"" x";
SET ROLE "Rôle ""q"" x";
CREATE SEQUENCE "Sché ma ""x"""."Sëq ""1""" OWNED BY "Sché ma ""x"""."Täble 'q' ""d"" %s ;"."Cölumn ""1""";
RESET ROLE;
SELECT setval('"Sché ma ""x"""."Sëq ""1"""', 77);
SELECT lo_from_bytea(424242, 'large object one'), lo_from_bytea(0, decode(repeat('ab', 9000), 'hex'));
ALTER LARGE OBJECT 424242 OWNER TO app;
