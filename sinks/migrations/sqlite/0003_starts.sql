-- The last start that has opened each sink, whether or not it has committed anything: no other one may commit.
CREATE TABLE headwater_starts (
    pipeline TEXT NOT NULL, sink TEXT NOT NULL, lineage TEXT NOT NULL, generation INTEGER NOT NULL,
    PRIMARY KEY (pipeline, sink)
) WITHOUT ROWID;
