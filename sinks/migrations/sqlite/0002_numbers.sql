-- SQLite has no exact decimal type. A decimal number has two columns: NAME_exact is its text, with all its digits; NAME
-- is the number next to it, by which it is compared, ordered and added up, and follows from the text. Up to 15 digits
-- both are the same. Columns that are generated when they are read need no row to be written anew.
ALTER TABLE events RENAME COLUMN amount TO amount_exact;
ALTER TABLE events ADD COLUMN amount NUMERIC GENERATED ALWAYS AS (CAST(amount_exact AS NUMERIC)) VIRTUAL;

ALTER TABLE window_aggregates RENAME COLUMN amount_sum TO amount_sum_exact;
ALTER TABLE window_aggregates RENAME COLUMN min TO min_exact;
ALTER TABLE window_aggregates RENAME COLUMN max TO max_exact;
ALTER TABLE window_aggregates
    ADD COLUMN amount_sum NUMERIC GENERATED ALWAYS AS (CAST(amount_sum_exact AS NUMERIC)) VIRTUAL;
ALTER TABLE window_aggregates ADD COLUMN min NUMERIC GENERATED ALWAYS AS (CAST(min_exact AS NUMERIC)) VIRTUAL;
ALTER TABLE window_aggregates ADD COLUMN max NUMERIC GENERATED ALWAYS AS (CAST(max_exact AS NUMERIC)) VIRTUAL;
