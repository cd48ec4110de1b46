"""Runs the migrations on the connection that `storage.session` hands over."""

from alembic import context
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

import storage.tables  # noqa: F401 - fills the metadata

connection: Connection = context.config.attributes["connection"]
# Autogenerate would otherwise propose to drop tables of other schemas on the search path.
connection.execute(text("SET search_path = public"))
context.configure(connection=connection, target_metadata=SQLModel.metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
