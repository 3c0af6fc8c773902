"""One step of the index: the rows that a span of events touches, changed in memory and written once at the end.

A job of fifteen events is one row; writing it fifteen times is what made rebuilding slow. Knows tables, not events.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from usufruct.errors import StaleLedgerError

Key = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(slots=True)
class _Table:
    """Statements for one table, and its rows that this step holds."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    rows: dict[Key, Row] = field(default_factory=dict)
    """By primary key; columns in their order."""
    fresh: set[Key] = field(default_factory=set)
    """Rows that the file does not have yet."""
    changed: set[Key] = field(default_factory=set)
    """Rows that the file has with other values."""
    is_whole: bool = False
    """All rows are here: one that is not, does not exist."""

    @property
    def _where(self) -> str:
        return " AND ".join(f"{column} = ?" for column in self.key)

    def key_of(self, row: Row) -> Key:
        """The primary key of a row."""
        return tuple([row[column] for column in self.key])

    def load(self, db: sqlite3.Connection, key: Key) -> Row | None:
        """The row in the file."""
        found = db.execute(f"SELECT * FROM {self.name} WHERE {self._where}", key).fetchone()  # noqa: S608
        return None if found is None else dict(zip(self.columns, found, strict=True))

    def load_all(self, db: sqlite3.Connection) -> None:
        """Take every row in: for a small table that is asked for many keys which it does not have."""
        for found in db.execute(f"SELECT * FROM {self.name}"):  # noqa: S608
            row = dict(zip(self.columns, found, strict=True))
            self.rows.setdefault(self.key_of(row), row)
        self.is_whole = True

    def write(self, db: sqlite3.Connection) -> None:
        """Bring the file up to date and forget every row; in the order of the keys, which is that of the file."""
        if self.fresh:
            marks = ", ".join("?" * len(self.columns))
            insert = f"INSERT INTO {self.name} VALUES ({marks})"  # noqa: S608
            db.executemany(insert, [tuple(self.rows[key].values()) for key in sorted(self.fresh)])
        if self.changed:
            values = [column for column in self.columns if column not in self.key]
            changes = ", ".join(f"{column} = ?" for column in values)
            update = f"UPDATE {self.name} SET {changes} WHERE {self._where}"  # noqa: S608
            of = itemgetter(*values, *self.key)
            db.executemany(update, [of(self.rows[key]) for key in sorted(self.changed)])
        self.rows.clear()
        self.fresh.clear()
        self.changed.clear()
        self.is_whole = False


class Step:
    """Rows in memory over an open transaction; `write` must be called before it is committed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._tables = {table.name: table for table in _tables(db)}
        self._lists: dict[str, list[tuple[object, ...]]] = {}

    def get(self, table: str, *key: object) -> Row | None:
        """A row by its primary key. To change it, call `update`."""
        held = self._tables[table]
        row = held.rows.get(key)
        if row is None:
            row = held.load(self._db, key)
            if row is not None:
                held.rows[key] = row
        return row

    def find(self, table: str, *key: object) -> Row | None:
        """As `get`, in a small table that has few of the keys that it is asked for."""
        held = self._tables[table]
        if not held.is_whole:
            held.load_all(self._db)
        return held.rows.get(key)

    def insert(self, table: str, *values: object) -> None:
        """A row that must not exist yet; values in the order of the columns.

        Raises
        ------
        StaleLedgerError
            If it does: the event that creates it was shown twice. For a row of an earlier step, when it is written.
        """
        held = self._tables[table]
        row = dict(zip(held.columns, values, strict=True))
        key = held.key_of(row)
        if key in held.rows:
            raise _shown_twice(f"its row of {table} is there already")
        held.rows[key] = row
        held.fresh.add(key)

    def update(self, table: str, *key: object, **changes: object) -> None:
        """Change columns of a row; nothing happens if there is none."""
        self.change(table, key, changes)

    def change(self, table: str, key: Key, changes: Row) -> None:
        """As `update`, for what happens to many rows."""
        held = self._tables[table]
        row = held.rows.get(key) or self.get(table, *key)
        if row is not None:
            row.update(changes)
            if key not in held.fresh:
                held.changed.add(key)

    def append(self, statement: str, *values: object) -> None:
        """Run a statement at the end, for rows that no event changes or reads again."""
        self.appended(statement).append(values)

    def appended(self, statement: str) -> list[tuple[object, ...]]:
        """What a statement will be run with."""
        return self._lists.setdefault(statement, [])

    def execute(self, statement: str, values: Mapping[str, object]) -> None:
        """Run a statement that touches rows by anything but their key, on everything up to here."""
        self.write()
        self._db.execute(statement, values)

    def write(self) -> None:
        """Write everything that is held.

        Raises
        ------
        StaleLedgerError
            If a row that an event creates was there before this step.
        """
        try:
            for table in self._tables.values():
                table.write(self._db)
            for statement, rows in self._lists.items():
                self._db.executemany(statement, rows)
                rows.clear()
        except sqlite3.IntegrityError as exc:
            raise _shown_twice(str(exc)) from exc


def _tables(db: sqlite3.Connection) -> Iterator[_Table]:
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = db.execute(f"PRAGMA table_info({name})").fetchall()
        key = sorted((column[5], column[1]) for column in columns if column[5])
        yield _Table(name, tuple(column[1] for column in columns), tuple(column for _, column in key))


def _shown_twice(sign: str) -> StaleLedgerError:
    return StaleLedgerError(f"the endpoint showed an event twice: {sign}")
