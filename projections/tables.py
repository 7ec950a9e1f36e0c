"""The tables of read models as the database knows them, for whoever builds the same ones elsewhere.

Statements that name tables are put together by the server or by ``psycopg.sql`` from names of the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from psycopg import sql

from projections.page import Connection

LIVE = "public"
"""The schema that the migrations make and everybody reads."""

CREATE_SHADOW = "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES)"
CREATE_TEMPORARY = "CREATE TEMP TABLE {} (LIKE {} INCLUDING ALL)"

INDEX_DEFINITIONS = """
SELECT t.relname, i.indisprimary,
       CASE WHEN c.oid IS NULL THEN pg_get_indexdef(i.indexrelid, 0, true)
            ELSE format('ALTER TABLE %%I ADD CONSTRAINT %%I %%s', t.relname, c.conname, pg_get_constraintdef(c.oid)) END
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid
WHERE t.relnamespace = 'public'::regnamespace AND t.relname = ANY(%s)
ORDER BY t.relname, i.indisprimary DESC, i.indexrelid
"""
"""The statements that give a table its keys and indexes under their own names; run them where another schema comes
first in the search path."""

STORAGE_AND_GRANTS = """
SELECT format('ALTER TABLE %%I SET (%%s)', relname, array_to_string(reloptions, ', '))
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%(tables)s) AND reloptions IS NOT NULL
UNION ALL
SELECT format('GRANT %%s ON TABLE %%I TO %%s', g.privilege_type, relname,
              CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END)
FROM pg_class CROSS JOIN LATERAL aclexplode(relacl) AS g
WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%(tables)s) AND g.grantee <> relowner
"""
"""The statements for what LIKE leaves out: settings of the storage, and who else may use the table. Run them where
another schema comes first in the search path."""

TIED_TO = """
WITH live AS (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%s))
SELECT 'trigger ' || tgname FROM pg_trigger JOIN live ON tgrelid = live.oid WHERE NOT tgisinternal
UNION SELECT 'policy ' || polname FROM pg_policy JOIN live ON polrelid = live.oid
UNION SELECT 'foreign key ' || conname FROM pg_constraint JOIN live ON live.oid IN (conrelid, confrelid)
    WHERE contype = 'f'
UNION SELECT 'view ' || ev_class::regclass FROM pg_rewrite r
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid JOIN live ON d.refobjid = live.oid
UNION SELECT 'publication ' || pubname FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
    JOIN live ON r.prrelid = live.oid
UNION SELECT 'right on column ' || attname FROM pg_attribute JOIN live ON attrelid = live.oid WHERE attacl IS NOT NULL
ORDER BY 1
"""
"""What belongs to these very tables and would be lost with them."""

PRIMARY_KEY = """
SELECT a.attname FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS key (attnum, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
WHERE i.indisprimary AND i.indrelid = %s::regclass ORDER BY key.place
"""


def create_shadow(connection: Connection, table: str) -> None:
    """Make an empty table of a live one's shape in the first schema of the search path, without its indexes."""
    connection.execute(sql.SQL(CREATE_SHADOW).format(sql.Identifier(table), sql.Identifier(LIVE, table)))
    for (statement,) in connection.execute(STORAGE_AND_GRANTS, {"tables": [table]}).fetchall():
        connection.execute(sql.SQL(statement))


def create_temporary(connection: Connection, table: str) -> None:
    """Make an empty table of a live one's shape for this session alone; its plain name then means that table."""
    connection.execute(sql.SQL(CREATE_TEMPORARY).format(sql.Identifier(table), sql.Identifier(LIVE, table)))


class IndexDefinition(NamedTuple):
    """``statement`` makes the index where it is run."""

    table: str
    is_primary_key: bool
    statement: str


def index_definitions(connection: Connection, tables: Sequence[str]) -> list[IndexDefinition]:
    """The live tables' keys and indexes."""
    return [IndexDefinition(*row) for row in connection.execute(INDEX_DEFINITIONS, (list(tables),))]


def tied_to(connection: Connection, tables: Sequence[str]) -> list[str]:
    """What others made on the live tables, such as a view or a trigger, by kind and name."""
    return [row[0] for row in connection.execute(TIED_TO, (list(tables),))]


def primary_key(connection: Connection, table: str) -> list[str]:
    """The columns of a live table's primary key, in its order."""
    return [row[0] for row in connection.execute(PRIMARY_KEY, (f"{LIVE}.{table}",))]
