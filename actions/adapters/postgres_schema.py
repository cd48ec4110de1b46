"""A listing of a database's schema that is equal before a dump and after its restore.

It holds no oids, no database name and no physical order. A superuser's objects become the database owner's in a
restore, so both are written as `<owner>`. What an unprivileged restore leaves out is left out here too: event triggers,
subscriptions, foreign data wrappers, publications and default privileges of superusers, tablespaces, and what belongs
to extensions (their names are listed).
"""

from __future__ import annotations

import json

from actions.adapters.postgres_connections import AsyncConnection

# Every query: one row for each object, any columns. The names in braces are filled in by `_filled`.
QUERIES: tuple[tuple[str, str], ...] = (
    (
        "schema",
        """SELECT n.nspname, {owner:n.nspowner}, {acl:n.nspacl:'n':n.nspowner},
                  CASE WHEN n.nspname <> 'public' THEN obj_description(n.oid, 'pg_namespace') END
             FROM pg_namespace n WHERE {ours} AND {free:pg_namespace:n.oid}""",
    ),
    ("extension", "SELECT e.extname FROM pg_extension e"),
    (
        "relation",
        """SELECT c.relkind, n.nspname, c.relname, {owner:c.relowner}, c.relpersistence,
                  {acl:c.relacl:CASE WHEN c.relkind = 'S' THEN 's'::"char" ELSE 'r'::"char" END:c.relowner},
                  (SELECT array_agg(o ORDER BY o) FROM unnest(c.reloptions) o), c.relrowsecurity, c.relforcerowsecurity,
                  pg_get_expr(c.relpartbound, c.oid),
                  CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
                  (SELECT array_agg(format('%I.%I', pn.nspname, p.relname) ORDER BY i.inhseqno) FROM pg_inherits i
                     JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
                    WHERE i.inhrelid = c.oid),
                  (SELECT amname FROM pg_am WHERE oid = c.relam AND amname <> 'heap'), c.relreplident,
                  CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
                  format_type(nullif(c.reloftype, 0), NULL), obj_description(c.oid, 'pg_class')
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c', 'S') AND c.relpersistence <> 't'
              AND {ours} AND {free:pg_class:c.oid}""",
    ),
    (
        "column",
        # By place only where the place is the table's own: a child's columns come in the order of its history.
        """SELECT n.nspname, c.relname, a.attname,
                  CASE WHEN NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
                       THEN row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum) END,
                  format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                  pg_get_expr(d.adbin, d.adrelid), a.attstorage, a.attcompression,
                  nullif(coalesce(a.attstattarget, -1), -1), a.attoptions, a.attfdwoptions,
                  CASE WHEN a.attcollation <> t.typcollation THEN
                       (SELECT format('%I.%I', ln.nspname, l.collname) FROM pg_collation l
                          JOIN pg_namespace ln ON ln.oid = l.collnamespace WHERE l.oid = a.attcollation) END,
                  {acl:a.attacl:'c':c.relowner}, col_description(c.oid, a.attnum)
             FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_type t ON t.oid = a.atttypid
             LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
              AND c.relpersistence <> 't' AND {ours} AND {free:pg_class:c.oid}""",
    ),
    (
        "constraint",
        # Not-null constraints are part of the columns; before version 18 they had no entry here.
        """SELECT n.nspname, c.relname, format_type(nullif(k.contypid, 0), NULL), k.conname,
                  pg_get_constraintdef(k.oid), k.convalidated, obj_description(k.oid, 'pg_constraint')
             FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
             LEFT JOIN pg_class c ON c.oid = k.conrelid
            WHERE k.contype NOT IN ('n', 't') AND {ours} AND {free:pg_class:c.oid} AND {free:pg_type:k.contypid}""",
    ),
    (
        "index",
        """SELECT n.nspname, x.relname, pg_get_indexdef(x.oid), i.indisclustered, i.indisreplident,
                  (SELECT array_agg(o ORDER BY o) FROM unnest(x.reloptions) o), obj_description(x.oid, 'pg_class')
             FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
             JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE (i.indisvalid OR c.relkind = 'p') AND c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'
              AND {ours} AND {free:pg_class:c.oid}""",
    ),
    (
        "sequence",
        """SELECT n.nspname, c.relname, format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmax, s.seqmin,
                  s.seqcache, s.seqcycle,
                  (SELECT format('%I.%I.%I', tn.nspname, t.relname, a.attname) FROM pg_depend d
                     JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
                     JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
                      AND d.deptype IN ('a', 'i') LIMIT 1)
             FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relpersistence <> 't' AND {ours} AND {free:pg_class:c.oid}""",
    ),
    (
        "function",
        """SELECT n.nspname, p.proname, pg_get_function_identity_arguments(p.oid), p.prokind,
                  CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END,
                  (SELECT (g.aggkind, g.aggnumdirectargs, g.aggtransfn, g.aggfinalfn, g.aggcombinefn, g.aggserialfn,
                           g.aggdeserialfn, g.aggmtransfn, g.aggminvtransfn, g.aggmfinalfn,
                           format_type(g.aggtranstype, NULL), g.agginitval, g.aggminitval)::text
                     FROM pg_aggregate g WHERE g.aggfnoid = p.oid),
                  {owner:p.proowner}, {acl:p.proacl:'f':p.proowner}, obj_description(p.oid, 'pg_proc')
             FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {ours} AND {free:pg_proc:p.oid}""",
    ),
    (
        "trigger",
        """SELECT n.nspname, c.relname, t.tgname, pg_get_triggerdef(t.oid), t.tgenabled,
                  obj_description(t.oid, 'pg_trigger')
             FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE NOT t.tgisinternal AND {ours} AND {free:pg_class:c.oid}""",
    ),
    (
        "rule",
        """SELECT n.nspname, c.relname, r.rulename, pg_get_ruledef(r.oid), r.ev_enabled
             FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE r.rulename <> '_RETURN' AND {ours} AND {free:pg_class:c.oid}""",
    ),
    (
        "policy",
        """SELECT n.nspname, c.relname, p.polname, p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid),
                  pg_get_expr(p.polwithcheck, p.polrelid),
                  (SELECT array_agg(CASE WHEN r = 0 THEN 'public' ELSE {owner:r} END ORDER BY 1)
                     FROM unnest(p.polroles) r)
             FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE {ours} AND {free:pg_class:c.oid}""",
    ),
    (
        "type",
        """SELECT n.nspname, t.typname, t.typtype, format_type(nullif(t.typbasetype, 0), t.typtypmod), t.typnotnull,
                  t.typdefault, {owner:t.typowner}, {acl:t.typacl:'T':t.typowner}, obj_description(t.oid, 'pg_type'),
                  (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
                  (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid)
             FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
            WHERE t.typtype IN ('d', 'e', 'r', 'm', 'b', 'c') AND t.typelem = 0
              AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
              AND {ours} AND {free:pg_type:t.oid}""",
    ),
    (
        "statistics",
        """SELECT n.nspname, s.stxname, pg_get_statisticsobjdef(s.oid), {owner:s.stxowner}
             FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE {ours}""",
    ),
    (
        "collation",
        """SELECT n.nspname, l.collname, l.collprovider, l.collcollate, l.collctype, l.collisdeterministic,
                  {owner:l.collowner}
             FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace
            WHERE {ours} AND {free:pg_collation:l.oid}""",
    ),
    (
        "operator",
        """SELECT n.nspname, o.oprname, format_type(o.oprleft, NULL), format_type(o.oprright, NULL), o.oprcode::text,
                  {owner:o.oprowner}
             FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
            WHERE {ours} AND {free:pg_operator:o.oid}""",
    ),
    (
        "text search configuration",
        """SELECT n.nspname, f.cfgname, {owner:f.cfgowner},
                  (SELECT array_agg(format('%s %s %s', m.maptokentype, m.mapseqno, m.mapdict::regdictionary)
                          ORDER BY m.maptokentype, m.mapseqno) FROM pg_ts_config_map m WHERE m.mapcfg = f.oid)
             FROM pg_ts_config f JOIN pg_namespace n ON n.oid = f.cfgnamespace
            WHERE {ours} AND {free:pg_ts_config:f.oid}""",
    ),
    (
        "default privileges",
        """SELECT n.nspname, r.rolname, a.defaclobjtype, {acl:a.defaclacl:a.defaclobjtype:a.defaclrole}
             FROM pg_default_acl a JOIN pg_roles r ON r.oid = a.defaclrole
             LEFT JOIN pg_namespace n ON n.oid = a.defaclnamespace WHERE NOT r.rolsuper""",
    ),
    (
        "publication",
        """SELECT p.pubname, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, {owner:p.pubowner},
                  (SELECT array_agg(format('%I.%I', t.schemaname, t.tablename) ORDER BY 1)
                     FROM pg_publication_tables t WHERE t.pubname = p.pubname)
             FROM pg_publication p JOIN pg_roles r ON r.oid = p.pubowner WHERE NOT r.rolsuper""",
    ),
)

OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
FREE = "NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = '{}'::regclass AND e.objid = {} AND e.deptype = 'e')"
OWNER = (
    "(SELECT CASE WHEN q.rolsuper OR q.oid = (SELECT datdba FROM pg_database WHERE datname = current_database())"
    " THEN '<owner>' ELSE q.rolname::text END FROM pg_roles q WHERE q.oid = {})"
)
# Who granted is left out: it is the owner, whoever that is now. An owner's own default rights are written out.
ACL = (
    "(SELECT array_agg(DISTINCT (CASE WHEN x.grantee = 0 THEN 'public' ELSE {grantee} END)"
    " || '=' || x.privilege_type || CASE WHEN x.is_grantable THEN '*' ELSE '' END)"
    " FROM aclexplode(coalesce({acl}, acldefault({kind}, {owner}))) x)"
)


async def schema_lines(connection: AsyncConnection) -> list[str]:
    """The listing, sorted. The session's transaction is the caller's; its search_path is set back."""
    path = await (await connection.execute("SELECT current_setting('search_path')")).fetchone()
    # With nothing on the path PostgreSQL writes every name with its schema.
    await connection.execute(
        "SELECT set_config('search_path', '', false), set_config('quote_all_identifiers', 'off', false)"
    )
    lines = []
    for kind, query in QUERIES:
        found = await (await connection.execute(_filled(query).encode())).fetchall()
        lines += [json.dumps([kind, *row], ensure_ascii=False, default=str) for row in found]
    await connection.execute("SELECT set_config('search_path', %s, false)", [path[0] if path else ""])
    return sorted(lines)


def _filled(query: str) -> str:
    parts = query.replace("{ours}", OURS).split("{")
    out = [parts[0]]
    for part in parts[1:]:
        inside, _, rest = part.partition("}")
        word, *values = inside.split(":") if "::" not in inside else _words(inside)
        match word:
            case "owner":
                text = OWNER.format(values[0])
            case "free":
                text = FREE.format(*values)
            case _:
                text = ACL.format(grantee=OWNER.format("x.grantee"), acl=values[0], kind=values[1], owner=values[2])
        out += [text, rest]
    return "".join(out)


def _words(inside: str) -> list[str]:
    return [word.replace("\0", "::") for word in inside.replace("::", "\0").split(":")]
