"""A trace as tables: SQL sees what the frames say, and can reach nothing else."""

import csv
import io

import duckdb
import pytest

from deploy.profile.open import open_trace
from deploy.profile.tables import columns, frames, query, write_csv, write_parquet
from protocols.errno import BadInputError
from services.trace.report import report
from tests.profile.test_page import CAPTURE


def test_counts_by_kind(own):
    names, rows = query(own, "select kind, count(*) n from messages group by kind order by kind")
    assert names == ["kind", "n"]
    kinds = [own.kinds[kind] for kind in own.messages["kind"].tolist()]
    assert rows == [(kind, kinds.count(kind)) for kind in sorted(set(kinds))]


def test_names_stand_beside_numbers(own):
    _, rows = query(own, "select id, id_text, cause_text, src, service from messages")
    for number, text, cause, src, service in rows:
        assert own.name_of(number) == text
        assert text.startswith(f"{src}#")
        assert (cause == "") == (src == "client/0")
        assert service in {"toolstack", "allocator", "p2m", "walker", "client"}


def test_causes_join(own):
    _, ((nr,),) = query(
        own, "select count(*) from messages a join messages b on a.cause = b.id and a.src = b.dst"
    )
    assert nr == int((own.messages["cause"] > 0).sum())


def test_a_capture_in_sql():
    trace = open_trace(CAPTURE)
    _, rows = query(
        trace, 'select "order", type_name, count(*) from updates group by all order by all'
    )
    want = report(trace, views=False)["domains"]["3"]["p2m_updates"]
    assert rows == sorted(
        (int(order), kind, nr) for order, kinds in want.items() for kind, nr in kinds.items()
    )
    assert sum(nr for _, _, nr in rows) == 15509
    _, ((seconds,),) = query(trace, "select max(time_s) from updates")
    assert 4 < seconds < 5
    _, rows = query(
        trace, "select op_name, sum(updates) from hypercalls group by 1 order by 2 desc"
    )
    assert rows[0] == ("memory_op", 145)


@pytest.mark.parametrize(
    "sql",
    [
        "selec 1",
        "select * from nothing",
        "",
        "-- nothing",
        "select nothing from messages",
        "select * from read_csv('/etc/hostname')",
        "copy messages to 'out.csv'",
        "install httpfs",
        "attach 'other.db'",
        "set enable_external_access = true",
    ],
)
def test_what_cannot_be_asked(own, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=r"^--sql: ") as caught:
        query(own, sql)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_parquet_comes_back(own, tmp_path):
    made = write_parquet(own, tmp_path / "run.parquet")
    assert [path.name for path in made] == [
        "run.messages.parquet", "run.updates.parquet", "run.events.parquet",
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted(made)
    for path, name in zip(made, ("messages", "updates", "events"), strict=True):
        database = duckdb.connect()
        result = database.execute(f"select * from '{path}'")
        names = [each[0] for each in result.description]
        back = dict(zip(names, zip(*result.fetchall(), strict=True), strict=True))
        want = columns(own, frames(own)[name])
        assert names == list(want)
        for column in names:
            assert list(back[column]) == want[column].tolist(), column
        database.close()


def test_csv_comes_back(own, tmp_path):
    made = {path.name: path for path in write_csv(own, tmp_path / "run.csv")}
    rows = list(csv.DictReader(io.StringIO(made["run.updates.csv"].read_text())))
    assert [int(row["gfn"]) for row in rows] == own.updates["gfn"].tolist()
    assert {row["type_name"] for row in rows} >= {"ram_rw"}


def test_a_place_that_cannot_be_written(own, tmp_path):
    with pytest.raises(BadInputError, match="cannot be written"):
        write_parquet(own, tmp_path / "no" / "where.parquet")
