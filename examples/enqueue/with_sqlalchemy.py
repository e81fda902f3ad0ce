"""An order and its task in one transaction, with SQLAlchemy. Needs DATABASE_URL: postgresql+psycopg://user:…@host/name."""

import os
import sys

from sqlalchemy import create_engine, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.expression import cast


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


number, note = sys.argv[1:]
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
with Session(engine) as session, session.begin():
    # The first two arguments are the agent and its input. For the others by name, use text().
    task = session.scalar(select(func.minion_submit("triage", cast({"text": note}, JSONB))))
    session.add(Order(number=int(number), note=note))
    # Leaving the block commits. Where it raises, as for a number that is taken, there is neither order nor task.
print(task)
