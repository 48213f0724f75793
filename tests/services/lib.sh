# Shared by up, down and control: where things lie, and how each service is started.
# shellcheck shell=bash

say() { echo "services: $*" >&2; }
die() { say "$*"; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HEADWATER_SERVICES_CACHE:-${HOME:-/tmp}/.cache/headwater-services}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Debian's packages, fetched only if a command of theirs is missing.
install_packages() {
    say "installing $*"
    as_root apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "$@" >&2
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits until a command succeeds; a service that has died is not waited for.
wait_for() { # NAME PIDFILE COMMAND...
    local name=$1 pidfile=$2; shift 2
    for _ in $(seq 600); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        kill -0 "$(cat "$pidfile")" 2>/dev/null || return 1
        sleep 0.1
    done
    say "$name did not become ready within a minute"
    return 1
}

port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

pg_bin() {
    local newest
    newest=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
    [ -n "$newest" ] && [ -x "$newest/initdb" ] && echo "$newest"
}

# PostgreSQL refuses to run as root.
pg_user() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

prepare_kafka() {
    command -v java >/dev/null || install_packages openjdk-17-jre-headless
    if ! ls "$cache"/kafka-4.1.0/kafka_2.13-4.1.0.jar >/dev/null 2>&1; then
        command -v mvn >/dev/null || install_packages maven
        mkdir -p "$cache"
        local staging
        staging=$(mktemp -d "$cache/staging.XXXXXX")
        say "fetching Kafka"
        mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$staging" >&2
        chmod 755 "$staging"
        mv -T "$staging" "$cache/kafka-4.1.0" 2>/dev/null || rm -rf "$staging"
    fi
}

prepare_postgres() { [ -n "$(pg_bin)" ] || install_packages postgresql; }
prepare_redis() { command -v redis-server >/dev/null || install_packages redis-server; }

configure_kafka() { # DIR
    local port controller proxied= behind
    port=$(free_port); controller=$(free_port)
    echo "$port" > "$1/kafka.port"
    # Clients are sent to where the broker says it is: those who come through a proxy have a listener of their own.
    if [ -n "${HEADWATER_KAFKA_PROXY:-}" ]; then
        behind=$(free_port)
        echo "$behind" > "$1/kafka.behind"
        proxied=1
    fi
    mkdir -p "$1/kafka"
    cat > "$1/kafka.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$controller
listeners=BROKER://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller${proxied:+,PROXIED://127.0.0.1:$behind}
advertised.listeners=BROKER://127.0.0.1:$port${proxied:+,PROXIED://127.0.0.1:$HEADWATER_KAFKA_PROXY}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=BROKER
log.dirs=$1/kafka/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
message.max.bytes=12000000
replica.fetch.max.bytes=12000000
num.network.threads=2
num.io.threads=4
EOF
    local id
    id=$(java -cp "$cache/kafka-4.1.0/*" kafka.tools.StorageTool random-uuid 2>/dev/null | tail -1)
    java -cp "$cache/kafka-4.1.0/*" kafka.tools.StorageTool format --standalone -t "$id" -c "$1/kafka.properties" \
        > "$1/kafka.format.log" 2>&1 || { cat "$1/kafka.format.log" >&2; return 1; }
}

start_kafka() { # DIR
    java -Xms256m -Xmx768m -cp "$cache/kafka-4.1.0/*" kafka.Kafka "$1/kafka.properties" \
        >> "$1/kafka.log" 2>&1 < /dev/null &
    echo $! > "$1/kafka.pid"
    wait_for kafka "$1/kafka.pid" port_answers "$(cat "$1/kafka.port")" || { tail -20 "$1/kafka.log" >&2; return 1; }
}

configure_postgres() { # DIR
    free_port > "$1/postgres.port"
    mkdir -p "$1/postgres"
    [ "$(id -u)" != 0 ] || chown postgres "$1/postgres"
    pg_user "$(pg_bin)/initdb" -D "$1/postgres/data" -U headwater -A trust -E UTF8 --locale=C.UTF-8 --no-sync \
        > "$1/postgres.init.log" 2>&1 || { cat "$1/postgres.init.log" >&2; return 1; }
}

start_postgres() { # DIR
    local port fresh=
    port=$(cat "$1/postgres.port")
    [ -e "$1/postgres.made" ] || fresh=1
    # The postmaster becomes this background job itself, so that its pid is the one to signal.
    if [ "$(id -u)" = 0 ]; then
        set -- "$1" setpriv --reuid=postgres --regid=postgres --init-groups
    else
        set -- "$1"
    fi
    "${@:2}" "$(pg_bin)/postgres" -D "$1/postgres/data" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories="$1/postgres" -c max_connections=200 -c synchronous_commit=on \
        >> "$1/postgres.log" 2>&1 < /dev/null &
    echo $! > "$1/postgres.pid"
    wait_for postgres "$1/postgres.pid" "$(pg_bin)/pg_isready" -q -h 127.0.0.1 -p "$port" -U headwater -d postgres \
        || { tail -20 "$1/postgres.log" >&2; return 1; }
    if [ -n "$fresh" ]; then
        "$(pg_bin)/createdb" -h 127.0.0.1 -p "$port" -U headwater headwater
        touch "$1/postgres.made"
    fi
}

configure_redis() { free_port > "$1/redis.port"; mkdir -p "$1/redis"; }

start_redis() { # DIR
    local port
    port=$(cat "$1/redis.port")
    redis-server --bind 127.0.0.1 --port "$port" --dir "$1/redis" --appendonly yes --appendfsync always \
        --maxmemory-policy noeviction --save '' >> "$1/redis.log" 2>&1 < /dev/null &
    echo $! > "$1/redis.pid"
    wait_for redis "$1/redis.pid" port_answers "$port"
}

# Ends a process that we started: gently, then hard.
end_process() { # PIDFILE SIGNAL
    [ -e "$1" ] || return 0
    local pid
    pid=$(cat "$1")
    kill "-$2" "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$1"
}
