//! The SQL statements, generated from the descriptions of the tables. They contain only our own names; values are sent
//! as parameters or in a COPY.

use crate::tables::{Column, Mode, TABLES, Table, TableSet};

/// The key of the advisory lock for migrations, and the seed of the lock under which a writer opens.
pub(super) const MIGRATION_LOCK: i64 = 0x6865_6164_7761_7465;

/// Advances this writer's progress, only if its row has not been changed and no later start has taken over.
///
/// `fenced_by` is a column of the row itself, so that an update that waits for the fencing update sees its result. The
/// subquery alone would read the snapshot from before the wait.
pub(super) const ADVANCE: &str = "
    UPDATE headwater_progress SET through = $5
    WHERE pipeline = $1 AND sink = $2 AND generation = $3 AND writer = $4
      AND through IS NOT DISTINCT FROM $6 AND fenced_by IS NULL
      AND NOT EXISTS (
          SELECT FROM headwater_progress AS later
          WHERE later.pipeline = $1 AND later.sink = $2 AND later.generation > $3)";

/// Selects the greatest offset of each partition in `events` or `dead_letters`, read from the ends of the key indexes.
pub(super) fn greatest_offsets(table: &str) -> String {
    format!(
        r#"WITH RECURSIVE found (partition) AS (
               SELECT min(partition) FROM {table}
               UNION ALL
               SELECT (SELECT min(partition) FROM {table} WHERE partition > found.partition)
               FROM found WHERE found.partition IS NOT NULL)
           SELECT partition, (SELECT max("offset") FROM {table} WHERE partition = found.partition)
           FROM found WHERE partition IS NOT NULL"#
    )
}

/// Creates the temporary tables of the session, from which rows are merged into tables that may contain them.
pub(super) fn make_session_tables(set: TableSet) -> String {
    let mut sql = String::new();
    for (_, table) in set.tables() {
        let name = table.name;
        sql += &format!("CREATE TEMP TABLE staged_{name} (LIKE {name}) ON COMMIT DELETE ROWS;\n");
        if let Mode::Upsert { key } = table.mode {
            let key = names(&table.columns[..key]);
            sql += &format!(
                "CREATE TEMP TABLE deleted_{name} ON COMMIT DELETE ROWS AS SELECT {key} FROM {name} WITH NO DATA;\n"
            );
        }
    }
    sql
}

/// Copies rows into the table itself.
pub(super) fn copy(table: &Table) -> String {
    copy_into(table.name, table.columns)
}

/// Copies rows into the temporary table of rows.
pub(super) fn copy_staged(table: &Table) -> String {
    copy_into(&format!("pg_temp.staged_{}", table.name), table.columns)
}

/// Copies keys into the temporary table of deleted keys.
pub(super) fn copy_deleted(table: &Table, key: usize) -> String {
    copy_into(&format!("pg_temp.deleted_{}", table.name), &table.columns[..key])
}

fn copy_into(to: &str, columns: &[Column]) -> String {
    format!("COPY {to} ({}) FROM STDIN WITH (FORMAT binary)", names(columns))
}

/// Inserts the rows of the temporary table into the table, replacing rows with the same keys. The keys of partitioned
/// tables include the time of the row.
pub(super) fn merge(table: &Table, is_partitioned: bool) -> String {
    let (name, columns) = (table.name, names(table.columns));
    let is_key = |index: usize| index < table.key() || is_partitioned && index == table.time;
    let (mut key, mut set) = (Vec::new(), Vec::new());
    for (index, column) in table.columns.iter().enumerate() {
        match is_key(index) {
            true => key.push(format!("\"{}\"", column.name)),
            false => set.push(format!("\"{0}\" = excluded.\"{0}\"", column.name)),
        }
    }
    format!(
        "INSERT INTO {name} ({columns}) SELECT {columns} FROM pg_temp.staged_{name}
         ON CONFLICT ({}) DO UPDATE SET {}",
        key.join(", "),
        set.join(", ")
    )
}

/// Deletes the rows whose keys are in the temporary table of deleted keys.
pub(super) fn remove(table: &Table, key: usize) -> String {
    let name = table.name;
    let equal: Vec<_> = table.columns[..key]
        .iter()
        .map(|column| format!("{name}.\"{0}\" = deleted.\"{0}\"", column.name))
        .collect();
    format!("DELETE FROM {name} USING pg_temp.deleted_{name} AS deleted WHERE {}", equal.join(" AND "))
}

/// Inserts those rows of the temporary table whose input record is not stored in any append-only table.
pub(super) fn append_missing(table: &Table) -> String {
    let (name, columns) = (table.name, names(table.columns));
    let absent: Vec<_> = TABLES
        .iter()
        .filter(|table| table.mode == Mode::Append)
        .map(|Table { name, .. }| {
            format!(
                r#"NOT EXISTS (SELECT FROM {name} AS stored
                   WHERE stored.partition = staged.partition AND stored."offset" = staged."offset")"#
            )
        })
        .collect();
    format!(
        "INSERT INTO {name} ({columns}) SELECT {columns} FROM pg_temp.staged_{name} AS staged WHERE {}",
        absent.join(" AND ")
    )
}

fn names(columns: &[Column]) -> String {
    columns.iter().map(|column| format!("\"{}\"", column.name)).collect::<Vec<_>>().join(", ")
}
