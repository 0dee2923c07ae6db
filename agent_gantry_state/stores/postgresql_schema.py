"""What the PostgreSQL store keeps in its database: tables, and the functions that answer one message each.

A message is one call of one function, so that it is one round trip and one transaction, also where a pooler gives each
transaction another connection. The functions lock namespaces in the order of their digests, and keep all that they know
between two statements in no session. Texts of people are bytes here, exactly as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg import sql

__all__ = ["FUNCTIONS", "LAYOUT", "NEWER", "call", "install", "layout_of", "schema_sql"]

#: Number of the layout below, which is in the names of the functions too: those of another layout are not found.
LAYOUT: Final = 1
#: SQLSTATE by which the script says that the schema is of a newer layout.
NEWER: Final = "AGS01"

# One script, which can be run again and by several at once. An empty table's pages count for the planner as ten, a full
# one's as they were when the plan was made: `enable_seqscan` keeps a plan that was made early from reading whole tables.
# `first` is a time before which no key of a namespace expires, `last` the greatest position given out. The rows of a
# namespace and of its keys are changed in place (HOT) as long as there is room on the page.
_BODY: Final = """\
SET LOCAL client_min_messages = warning;
DO $do$
BEGIN
    IF to_regnamespace({name}) IS NULL THEN
        CREATE SCHEMA {schema};
    END IF;
END
$do$;
CREATE TABLE IF NOT EXISTS {schema}.layout (version int NOT NULL);
DO $do$
BEGIN
    IF EXISTS (SELECT FROM {schema}.layout WHERE version > {layout}) THEN
        RAISE EXCEPTION 'this schema is of a newer version of agent-gantry-state' USING ERRCODE = {newer};
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.layout) THEN
        INSERT INTO {schema}.layout VALUES ({layout});
    END IF;
END
$do$;

CREATE TABLE IF NOT EXISTS {schema}.namespace (
    digest bytea NOT NULL PRIMARY KEY,
    head bytea NOT NULL,
    born bytea NOT NULL,
    last bigint NOT NULL,
    touched float8 NOT NULL,
    first float8,
    owner bytea,
    app bytea NOT NULL,
    scope bytea NOT NULL,
    address bytea NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX IF NOT EXISTS namespace_first ON {schema}.namespace (first) WHERE first IS NOT NULL;
CREATE INDEX IF NOT EXISTS namespace_owner ON {schema}.namespace (sha256(owner), digest) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS {schema}.entry (
    digest bytea NOT NULL,
    key bytea NOT NULL,
    version bytea NOT NULL,
    position bigint NOT NULL,
    expires_at float8,
    slides float8,
    name bytea,
    record bytea NOT NULL,
    PRIMARY KEY (digest, key)
) WITH (fillfactor = 75);
CREATE TABLE IF NOT EXISTS {schema}.token (token bytea NOT NULL PRIMARY KEY, until float8 NOT NULL);
CREATE INDEX IF NOT EXISTS token_until ON {schema}.token (until);
CREATE TABLE IF NOT EXISTS {schema}.lease (
    digest bytea NOT NULL PRIMARY KEY,
    holder bytea NOT NULL,
    until float8 NOT NULL
);
CREATE INDEX IF NOT EXISTS lease_until ON {schema}.lease (until);

-- Namespaces as a whole. The first row of each is its own: head, last touch, address, birth, owner, time. One whose head and
-- last touch are those that the caller names is told by that row alone.
CREATE OR REPLACE FUNCTION {schema}.load_1(p_digests bytea[], p_heads bytea[], p_touched float8[], p_now float8)
RETURNS TABLE (
    o_place int, o_key bytea, o_version bytea, o_position bigint, o_expires float8, o_slides float8, o_name bytea,
    o_record bytea, o_born bytea, o_owner bytea, o_now float8
)
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $body$
BEGIN
    FOR i IN 1 .. cardinality(p_digests) LOOP
        SELECT n.head, n.touched, n.address, n.born, n.owner INTO o_version, o_slides, o_record, o_born, o_owner
            FROM {schema}.namespace n WHERE n.digest = p_digests[i];
        o_place := i;
        o_now := coalesce(p_now, date_part('epoch', clock_timestamp()));
        IF o_version = p_heads[i] AND o_slides = p_touched[i] THEN
            o_record := NULL;
            RETURN NEXT;
        ELSE
            RETURN NEXT;
            RETURN QUERY SELECT i, e.key, e.version, e.position, e.expires_at, e.slides, e.name, e.record,
                NULL::bytea, NULL::bytea, NULL::float8 FROM {schema}.entry e WHERE e.digest = p_digests[i];
        END IF;
    END LOOP;
END
$body$;

-- Of each namespace the p_counts[i] next ones of p_keys, all where that is -1; where p_names[i] is odd also the others,
-- without their records. The namespace's own row has in o_expires when the last of all its keys expires.
CREATE OR REPLACE FUNCTION {schema}.choose_1(
    p_digests bytea[], p_keys bytea[], p_counts int[], p_names int[], p_now float8
)
RETURNS TABLE (
    o_place int, o_key bytea, o_version bytea, o_position bigint, o_expires float8, o_slides float8, o_name bytea,
    o_record bytea, o_born bytea, o_owner bytea, o_now float8
)
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $body$
DECLARE
    v_now float8 := coalesce(p_now, date_part('epoch', clock_timestamp()));
    v_keys bytea[];
    v_at int := 0;
    v_first float8;
    v_touched float8;
    v_there bigint;
    v_left bigint;
BEGIN
    FOR i IN 1 .. cardinality(p_digests) LOOP
        v_keys := NULL;
        IF p_counts[i] >= 0 THEN
            v_keys := p_keys[v_at + 1 : v_at + p_counts[i]];
            v_at := v_at + p_counts[i];
        END IF;
        SELECT n.head, n.touched, n.address, n.born, n.owner, n.first
            INTO o_version, v_touched, o_record, o_born, o_owner, v_first
            FROM {schema}.namespace n WHERE n.digest = p_digests[i];
        o_place := i;
        o_slides := v_touched;
        o_now := v_now;
        o_expires := 'infinity';
        IF v_first IS NOT NULL THEN
            -- With the last of its keys a namespace is gone.
            SELECT count(*), count(*) FILTER (WHERE d.at > v_now), max(d.at) INTO v_there, v_left, o_expires
                FROM (
                    SELECT coalesce(v_touched + e.slides, e.expires_at, 'infinity') AS at
                    FROM {schema}.entry e WHERE e.digest = p_digests[i]
                ) d;
            o_expires := coalesce(o_expires, 'infinity');
            IF v_there > 0 AND v_left = 0 THEN
                o_version := NULL;
            END IF;
        END IF;
        RETURN NEXT;
        IF o_version IS NULL THEN
            CONTINUE;
        END IF;
        IF v_keys IS NULL OR p_names[i] & 1 > 0 THEN
            RETURN QUERY SELECT i, e.key, e.version, e.position, e.expires_at, e.slides, e.name,
                CASE WHEN v_keys IS NULL OR e.key = ANY (v_keys) THEN e.record END,
                NULL::bytea, NULL::bytea, NULL::float8
                FROM {schema}.entry e
                WHERE e.digest = p_digests[i] AND coalesce(v_touched + e.slides, e.expires_at, 'infinity') > v_now;
        ELSE
            RETURN QUERY SELECT i, e.key, e.version, e.position, e.expires_at, e.slides, e.name, e.record,
                NULL::bytea, NULL::bytea, NULL::float8
                FROM {schema}.entry e
                WHERE e.digest = p_digests[i] AND e.key = ANY (v_keys)
                    AND coalesce(v_touched + e.slides, e.expires_at, 'infinity') > v_now;
        END IF;
    END LOOP;
END
$body$;

-- Deletes what is expired in a namespace whose row is locked, and the namespace with the last of its keys.
CREATE OR REPLACE FUNCTION {schema}.prune_1(p_digest bytea, p_now float8)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $body$
DECLARE
    v_touched float8;
    v_first float8;
    v_gone bigint;
    v_left bigint;
BEGIN
    SELECT n.touched INTO v_touched FROM {schema}.namespace n WHERE n.digest = p_digest;
    DELETE FROM {schema}.entry e WHERE e.digest = p_digest AND coalesce(v_touched + e.slides, e.expires_at) <= p_now;
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    SELECT count(*), min(coalesce(v_touched + e.slides, e.expires_at)) INTO v_left, v_first
        FROM {schema}.entry e WHERE e.digest = p_digest;
    IF v_gone > 0 AND v_left = 0 THEN
        DELETE FROM {schema}.namespace n WHERE n.digest = p_digest;
    ELSE
        UPDATE {schema}.namespace n SET first = v_first WHERE n.digest = p_digest;
    END IF;
END
$body$;

-- Locks a namespace until the transaction ends, also one that is not there.
CREATE OR REPLACE FUNCTION {schema}.lock_1(p_digest bytea)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $body$
DECLARE
    v_alone boolean := false;
BEGIN
    LOOP
        -- One that was waited for may be gone and made anew, as an expired one is: so it is looked for again.
        PERFORM FROM {schema}.namespace n WHERE n.digest = p_digest FOR UPDATE;
        IF FOUND THEN
            RETURN;
        END IF;
        EXIT WHEN v_alone AND NOT EXISTS (SELECT FROM {schema}.namespace n WHERE n.digest = p_digest);
        IF NOT v_alone THEN
            -- Who makes it has this lock, and whoever makes it after that finds it made.
            PERFORM pg_advisory_xact_lock(('x' || encode(substr(p_digest, 1, 8), 'hex'))::bit(64)::bigint);
            v_alone := true;
        END IF;
    END LOOP;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- A snapshot as old as the transaction does not show what was made meanwhile. The index does: 23505.
        INSERT INTO {schema}.namespace (digest, head, born, last, touched, app, scope, address)
            VALUES (p_digest, '', '', 0, 0, '', '', '');
        DELETE FROM {schema}.namespace n WHERE n.digest = p_digest;
    END IF;
END
$body$;

-- Writes changes, sorted by digest, in one step. The answer is one row whose o_place is 0 if all was done and nothing had
-- happened to the one namespace, -1 if all was done; else rows as of choose_1, for what is in p_check_keys,
-- and the names of all keys where any other head is a move.
-- p_flags: 1 any other head is a move, 2 touch, 4 something is written, 8 try first whether all is as it was loaded.
-- p_checks, p_puts, p_deletes: how many of the keys below are each change's. p_due, p_slide: the least of its times to live.
-- p_terms: 0 to 3 keep the expiry, none, fixed, sliding; 4 goes last; 8 is new.
CREATE OR REPLACE FUNCTION {schema}.commit_1(
    p_now float8, p_token bytea, p_version bytea, p_lazy boolean, p_wait int, p_sweep int,
    p_digests bytea[], p_heads bytea[], p_flags int[], p_borns bytea[], p_loaded bytea[], p_owners bytea[],
    p_apps bytea[], p_scopes bytea[], p_addresses bytea[], p_due float8[], p_slide float8[],
    p_checks int[], p_puts int[], p_deletes int[],
    p_check_keys bytea[], p_check_versions bytea[],
    p_put_keys bytea[], p_names bytea[], p_records bytea[], p_terms int[], p_ttls float8[],
    p_delete_keys bytea[]
)
RETURNS TABLE (
    o_place int, o_key bytea, o_version bytea, o_position bigint, o_expires float8, o_slides float8, o_name bytea,
    o_record bytea, o_born bytea, o_owner bytea, o_now float8
)
LANGUAGE plpgsql SET enable_seqscan = off AS $body$
DECLARE
    v_count int := cardinality(p_digests);
    v_now float8 := coalesce(p_now, date_part('epoch', clock_timestamp()));
    v_quick boolean := false;
    v_moved boolean := false;
    v_bases bigint[];
    v_last bigint;
    v_first float8;
    v_touched float8;
    v_head bytea;
    v_born bytea;
    v_owner bytea;
    v_there boolean;
    v_term int;
    v_at int := 0;
    v_to int;
    v_digest bytea;
    v_set text;
BEGIN
    IF p_lazy THEN
        v_set := set_config('synchronous_commit', 'off', true);
    END IF;
    v_set := set_config('lock_timeout', p_wait::text, true);
    IF v_count = 1 AND p_flags[1] & 8 > 0 THEN
        UPDATE {schema}.namespace n SET head = p_version, last = n.last + p_puts[1],
            first = least(
                n.first, v_now + p_due[1], CASE WHEN p_flags[1] & 2 > 0 THEN v_now ELSE n.touched END + p_slide[1]
            ),
            touched = CASE WHEN p_flags[1] & 2 > 0 THEN v_now ELSE n.touched END
            -- Without waiting: the time would be one from before.
            WHERE n.digest = (
                    SELECT s.digest FROM {schema}.namespace s WHERE s.digest = p_digests[1] FOR UPDATE SKIP LOCKED
                ) AND n.head = p_heads[1] AND (n.first IS NULL OR n.first > v_now)
                AND (p_flags[1] & 2 = 0 OR n.touched <= v_now)
            RETURNING n.last - p_puts[1] INTO v_last;
        v_quick := FOUND;
        v_bases[1] := v_last;
    END IF;

    IF NOT v_quick THEN
        FOR i IN 1 .. v_count LOOP
            PERFORM {schema}.lock_1(p_digests[i]);
        END LOOP;
        v_now := coalesce(p_now, date_part('epoch', clock_timestamp()));
        IF EXISTS (SELECT FROM {schema}.token t WHERE t.token = p_token AND t.until > v_now) THEN
            o_place := -1;
            o_now := v_now;
            RETURN NEXT;
            RETURN;
        END IF;
        FOR i IN 1 .. v_count LOOP
            SELECT n.first INTO v_first FROM {schema}.namespace n WHERE n.digest = p_digests[i];
            IF v_first <= v_now THEN
                PERFORM {schema}.prune_1(p_digests[i], v_now);
            END IF;
            SELECT n.head, n.born, n.owner INTO v_head, v_born, v_owner
                FROM {schema}.namespace n WHERE n.digest = p_digests[i];
            IF v_head IS DISTINCT FROM p_heads[i] AND (
                p_flags[i] & 1 > 0
                OR v_owner IS DISTINCT FROM p_loaded[i]
                OR (p_heads[i] IS NOT NULL AND v_born IS DISTINCT FROM p_borns[i])
                OR EXISTS (
                    SELECT FROM unnest(
                        p_check_keys[v_at + 1 : v_at + p_checks[i]], p_check_versions[v_at + 1 : v_at + p_checks[i]]
                    ) c (key, version)
                    LEFT JOIN {schema}.entry e ON e.digest = p_digests[i] AND e.key = c.key
                    WHERE e.version IS DISTINCT FROM c.version
                )
            ) THEN
                v_moved := true;
            END IF;
            v_at := v_at + p_checks[i];
        END LOOP;
        IF v_moved THEN
            RETURN QUERY SELECT * FROM {schema}.choose_1(p_digests, p_check_keys, p_checks, p_flags, v_now);
            RETURN;
        END IF;
        FOR i IN 1 .. v_count LOOP
            SELECT n.last, n.touched, n.first INTO v_last, v_touched, v_first
                FROM {schema}.namespace n WHERE n.digest = p_digests[i];
            v_there := FOUND;
            v_bases[i] := coalesce(v_last, 0);
            CONTINUE WHEN NOT v_there AND p_flags[i] & 4 = 0;
            IF p_flags[i] & 2 > 0 THEN
                IF v_now < v_touched THEN
                    -- A clock that was set back: what slides ends earlier than thought.
                    SELECT min(coalesce(v_now + e.slides, e.expires_at)) INTO v_first
                        FROM {schema}.entry e WHERE e.digest = p_digests[i];
                END IF;
                v_touched := v_now;
            END IF;
            v_touched := coalesce(v_touched, 0);
            IF p_flags[i] & 4 = 0 THEN
                IF p_flags[i] & 2 > 0 THEN
                    UPDATE {schema}.namespace n SET touched = v_touched, first = v_first WHERE n.digest = p_digests[i];
                END IF;
                CONTINUE;
            END IF;
            v_first := least(v_first, v_now + p_due[i], v_touched + p_slide[i]);
            IF v_there THEN
                UPDATE {schema}.namespace n SET head = p_version, last = n.last + p_puts[i], touched = v_touched,
                    first = v_first, owner = coalesce(p_owners[i], n.owner) WHERE n.digest = p_digests[i];
            ELSE
                INSERT INTO {schema}.namespace (digest, head, born, last, touched, first, owner, app, scope, address)
                    VALUES (p_digests[i], p_version, p_version, p_puts[i], v_touched, v_first, p_owners[i], p_apps[i],
                        p_scopes[i], p_addresses[i]);
            END IF;
        END LOOP;
    END IF;

    v_at := 0;
    FOR i IN 1 .. v_count LOOP
        IF p_deletes[i] > 0 THEN
            DELETE FROM {schema}.entry e
                WHERE e.digest = p_digests[i] AND e.key = ANY (p_delete_keys[v_at + 1 : v_at + p_deletes[i]]);
            v_at := v_at + p_deletes[i];
        END IF;
    END LOOP;
    v_at := 0;
    FOR i IN 1 .. v_count LOOP
        v_to := v_at + p_puts[i];
        FOR j IN v_at + 1 .. v_to LOOP
            v_term := p_terms[j] & 3;
            IF p_terms[j] & 8 = 0 THEN
                UPDATE {schema}.entry e SET version = p_version, record = p_records[j],
                    position = CASE WHEN p_terms[j] & 4 > 0 THEN v_bases[i] + j - v_at ELSE e.position END,
                    expires_at = CASE v_term WHEN 0 THEN e.expires_at WHEN 2 THEN v_now + p_ttls[j] END,
                    slides = CASE v_term WHEN 0 THEN e.slides WHEN 3 THEN p_ttls[j] END
                    WHERE e.digest = p_digests[i] AND e.key = p_put_keys[j];
                CONTINUE WHEN FOUND;
            END IF;
            INSERT INTO {schema}.entry (digest, key, version, position, expires_at, slides, name, record)
                VALUES (p_digests[i], p_put_keys[j], p_version, v_bases[i] + j - v_at,
                    CASE v_term WHEN 2 THEN v_now + p_ttls[j] END, CASE v_term WHEN 3 THEN p_ttls[j] END,
                    p_names[j], p_records[j])
                ON CONFLICT (digest, key) DO UPDATE SET version = excluded.version, position = excluded.position,
                    expires_at = excluded.expires_at, slides = excluded.slides, record = excluded.record;
        END LOOP;
        v_at := v_to;
    END LOOP;
    IF p_token <> '' THEN
        INSERT INTO {schema}.token (token, until) VALUES (p_token, v_now + {token_seconds})
            ON CONFLICT (token) DO UPDATE SET until = excluded.until;
    END IF;

    IF p_sweep > 0 THEN
        -- Without waiting for anybody: what somebody else has locked is left to him.
        DELETE FROM {schema}.token t WHERE t.token = ANY (ARRAY(
            SELECT s.token FROM {schema}.token s WHERE s.until <= v_now ORDER BY s.until LIMIT p_sweep
                FOR UPDATE SKIP LOCKED
        ));
        DELETE FROM {schema}.lease l WHERE l.digest = ANY (ARRAY(
            SELECT s.digest FROM {schema}.lease s WHERE s.until <= v_now ORDER BY s.until LIMIT p_sweep
                FOR UPDATE SKIP LOCKED
        ));
        FOR v_digest IN
            SELECT n.digest FROM {schema}.namespace n WHERE n.first <= v_now ORDER BY n.first LIMIT p_sweep
                FOR UPDATE SKIP LOCKED
        LOOP
            PERFORM {schema}.prune_1(v_digest, v_now);
        END LOOP;
    END IF;
    o_place := CASE WHEN v_quick THEN 0 ELSE -1 END;
    o_now := v_now;
    RETURN NEXT;
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.forget_1(p_digests bytea[], p_wait int)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $body$
BEGIN
    PERFORM set_config('lock_timeout', p_wait::text, true);
    FOR i IN 1 .. cardinality(p_digests) LOOP
        PERFORM {schema}.lock_1(p_digests[i]);
        DELETE FROM {schema}.namespace n WHERE n.digest = p_digests[i];
        DELETE FROM {schema}.entry e WHERE e.digest = p_digests[i];
    END LOOP;
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.is_there_1(p_digest bytea, p_first float8, p_touched float8, p_now float8)
RETURNS boolean LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $body$
BEGIN
    RETURN p_first IS NULL OR p_first > p_now
        OR NOT EXISTS (SELECT FROM {schema}.entry e WHERE e.digest = p_digest)
        OR EXISTS (
            SELECT FROM {schema}.entry e
            WHERE e.digest = p_digest AND coalesce(p_touched + e.slides, e.expires_at, 'infinity') > p_now
        );
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.list_1(
    p_after bytea, p_app bytea, p_scope bytea, p_owner bytea, p_limit int, p_now float8
)
RETURNS TABLE (o_digest bytea, o_address bytea, o_owner bytea)
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $body$
DECLARE
    v_now float8 := coalesce(p_now, date_part('epoch', clock_timestamp()));
BEGIN
    IF p_owner IS NULL THEN
        RETURN QUERY SELECT n.digest, n.address, n.owner FROM {schema}.namespace n
            WHERE n.digest > p_after AND (p_app IS NULL OR n.app = p_app) AND (p_scope IS NULL OR n.scope = p_scope)
                AND {schema}.is_there_1(n.digest, n.first, n.touched, v_now)
            ORDER BY n.digest LIMIT p_limit;
    ELSE
        RETURN QUERY SELECT n.digest, n.address, n.owner FROM {schema}.namespace n
            WHERE n.digest > p_after AND n.owner IS NOT NULL AND sha256(n.owner) = sha256(p_owner) AND n.owner = p_owner
                AND (p_app IS NULL OR n.app = p_app) AND (p_scope IS NULL OR n.scope = p_scope)
                AND {schema}.is_there_1(n.digest, n.first, n.touched, v_now)
            ORDER BY n.digest LIMIT p_limit;
    END IF;
END
$body$;

-- 0 if the lease is granted or renewed, else the seconds that its holder has left.
CREATE OR REPLACE FUNCTION {schema}.lease_1(p_digest bytea, p_holder bytea, p_ttl float8, p_now float8)
RETURNS float8 LANGUAGE plpgsql SET enable_seqscan = off AS $body$
DECLARE
    v_now float8 := coalesce(p_now, date_part('epoch', clock_timestamp()));
    v_until float8;
BEGIN
    LOOP
        INSERT INTO {schema}.lease AS l (digest, holder, until) VALUES (p_digest, p_holder, v_now + p_ttl)
            ON CONFLICT (digest) DO UPDATE SET holder = excluded.holder, until = excluded.until
            WHERE l.holder = p_holder OR l.until <= v_now;
        IF FOUND THEN
            RETURN 0;
        END IF;
        SELECT l.until INTO v_until FROM {schema}.lease l WHERE l.digest = p_digest AND l.until > v_now;
        IF FOUND THEN
            RETURN v_until - v_now;
        END IF;
    END LOOP;
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.release_1(p_digest bytea, p_holder bytea)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $body$
BEGIN
    DELETE FROM {schema}.lease l WHERE l.digest = p_digest AND l.holder = p_holder;
END
$body$;
"""
_SCRIPT: Final = """\
BEGIN;
SELECT pg_advisory_xact_lock({lock});
{body}COMMIT;
"""
# The same for many at once, of whom the first one does it: who comes later finds all there, and changes nothing.
_ONCE: Final = """\
DO $once$
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    IF EXISTS (SELECT FROM unnest({functions}::text[]) f (name) WHERE to_regproc(f.name) IS NULL)
        OR EXISTS (SELECT FROM unnest({tables}::text[]) t (name) WHERE to_regclass(t.name) IS NULL)
    THEN
        EXECUTE {body};
    END IF;
END
$once$
"""
_LOCK: Final = 4707302170384237891
_TABLES: Final = ("layout", "namespace", "entry", "token", "lease")

#: Seconds for which a commit that landed is remembered, so that it can be sent again.
_TOKEN_SECONDS: Final = 60.0

# What each function takes: bytea, double precision, int, boolean, and arrays of them.
_BYTES, _FLOAT, _INT, _BOOL, _ALL_BYTES, _ALL_FLOAT, _ALL_INT = 17, 701, 23, 16, 1001, 1022, 1007
_TAKES: Final[dict[str, tuple[int, ...]]] = {
    "load_1": (_ALL_BYTES, _ALL_BYTES, _ALL_FLOAT, _FLOAT),
    "choose_1": (_ALL_BYTES, _ALL_BYTES, _ALL_INT, _ALL_INT, _FLOAT),
    "commit_1": (
        *(_FLOAT, _BYTES, _BYTES, _BOOL, _INT, _INT),
        *(_ALL_BYTES, _ALL_BYTES, _ALL_INT, _ALL_BYTES, _ALL_BYTES, _ALL_BYTES),
        *(_ALL_BYTES, _ALL_BYTES, _ALL_BYTES, _ALL_FLOAT, _ALL_FLOAT),
        *(_ALL_INT, _ALL_INT, _ALL_INT),
        *(_ALL_BYTES, _ALL_BYTES),
        *(_ALL_BYTES, _ALL_BYTES, _ALL_BYTES, _ALL_INT, _ALL_FLOAT),
        _ALL_BYTES,
    ),
    "forget_1": (_ALL_BYTES, _INT),
    "list_1": (_BYTES, _BYTES, _BYTES, _BYTES, _INT, _FLOAT),
    "lease_1": (_BYTES, _BYTES, _FLOAT, _FLOAT),
    "release_1": (_BYTES, _BYTES),
}


_NUMBERED: Final = "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22"
_NUMBERS: Final = (_NUMBERED + ", $23, $24, $25, $26, $27, $28").split(", ")
#: Those that are called from outside.
FUNCTIONS: Final = tuple(_TAKES)


def schema_sql(schema: str) -> str:
    """The script that makes *schema*, or brings it up to date; it can be run again."""
    return sql.SQL(_SCRIPT).format(lock=sql.Literal(_LOCK), body=_body(schema)).as_string(None)


def install(schema: str) -> bytes:
    """The statement that makes what is not there of *schema*."""

    def names(of: Sequence[str]) -> list[str]:
        return [sql.Identifier(schema, name).as_string(None) for name in of]

    composed = sql.SQL(_ONCE).format(
        lock=sql.Literal(_LOCK),
        functions=sql.Literal(names([*FUNCTIONS, "prune_1", "is_there_1", "lock_1"])),
        tables=sql.Literal(names(_TABLES)),
        body=sql.Literal(_body(schema).as_string(None)),
    )
    return composed.as_bytes(None)


def _body(schema: str) -> sql.Composed:
    return sql.SQL(_BODY).format(
        schema=sql.Identifier(schema),
        name=sql.Literal(sql.Identifier(schema).as_string(None)),
        layout=sql.Literal(LAYOUT),
        newer=sql.Literal(NEWER),
        token_seconds=sql.Literal(_TOKEN_SECONDS),
    )


def call(schema: str, function: str) -> tuple[bytes, tuple[int, ...]]:
    """The statement that calls a function of *schema*, and the types of what it takes."""
    types = _TAKES[function]
    call = sql.SQL("SELECT * FROM {}({})").format(
        sql.Identifier(schema, function), sql.SQL(", ".join(_NUMBERS[: len(types)]))
    )
    return call.as_bytes(None), types


def layout_of(schema: str) -> bytes:
    """The statement that asks for the layout of *schema*."""
    return sql.SQL("SELECT version::text FROM {}").format(sql.Identifier(schema, "layout")).as_bytes(None)
