#!/usr/bin/env bash
# Creates the role headwater_reader, with which Grafana reads the tables and views that POSTGRES_USER has in the schema
# public, now and later. The image runs this for a new database; it can be repeated, also to change the password:
#   docker compose exec postgres bash /docker-entrypoint-initdb.d/reader.sh
set -euo pipefail

psql -v ON_ERROR_STOP=1 --quiet --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password READER_PASSWORD
SELECT 'CREATE ROLE headwater_reader LOGIN' WHERE to_regrole('headwater_reader') IS NULL \gexec
ALTER ROLE headwater_reader PASSWORD :'password';
ALTER ROLE headwater_reader SET default_transaction_read_only = on;
ALTER ROLE headwater_reader SET statement_timeout = '30s';
GRANT SELECT ON ALL TABLES IN SCHEMA public TO headwater_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO headwater_reader;
SQL
