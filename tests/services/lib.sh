# Functions and paths shared by up, down and control.
# shellcheck shell=bash

say() { echo "services: $*" >&2; }
die() { say "$*"; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HEADWATER_SERVICES_CACHE:-${HOME:-/tmp}/.cache/headwater-services}
kafka_version=${HEADWATER_KAFKA_VERSION:-4.1.0}
registry_version=2.6.13.Final
s3_version=0.14.1

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Installs Debian packages; called only if one of their commands is missing.
install_packages() {
    say "installing $*"
    as_root apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "$@" >&2
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits until a command succeeds; fails at once if the service has died.
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

# Creates a CA, a server certificate for 127.0.0.1 (without a host name), a client certificate for "certified", and an
# unrelated CA.
prepare_tls() { command -v openssl >/dev/null || install_packages openssl; }

configure_tls() { # DIR
    local tls=$1/tls ca name
    mkdir -p "$tls"
    for ca in ca other-ca; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$ca" \
            -keyout "$tls/$ca.key" -out "$tls/$ca.pem"
    done
    for name in server certified; do
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
            -keyout "$tls/$name.key" -out "$tls/$name.csr"
        printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > "$tls/$name.ext"
        openssl x509 -req -in "$tls/$name.csr" -CA "$tls/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial -days 30 \
            -extfile "$tls/$name.ext" -out "$tls/$name.pem"
    done
    cat "$tls/server.key" "$tls/server.pem" > "$tls/server.both"
    chmod 644 "$tls"/*
}

prepare_kafka() {
    command -v java >/dev/null || install_packages openjdk-17-jre-headless
    if ! ls "$cache/kafka-$kafka_version/kafka_2.13-$kafka_version.jar" >/dev/null 2>&1; then
        command -v mvn >/dev/null || install_packages maven
        mkdir -p "$cache"
        local staging
        staging=$(mktemp -d "$cache/staging.XXXXXX")
        say "fetching Kafka $kafka_version"
        mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies \
            -Dkafka.version="$kafka_version" -DoutputDirectory="$staging" >&2
        chmod 755 "$staging"
        mv -T "$staging" "$cache/kafka-$kafka_version" 2>/dev/null || rm -rf "$staging"
    fi
}

prepare_kafka3() { prepare_kafka; }

# Apicurio, a schema registry with Confluent's interface, which keeps schemas in memory.
prepare_registry() {
    command -v java >/dev/null || install_packages openjdk-17-jre-headless
    if [ ! -e "$cache/registry-$registry_version" ]; then
        command -v mvn >/dev/null || install_packages maven
        mkdir -p "$cache"
        local staging
        staging=$(mktemp -d "$cache/staging.XXXXXX")
        say "fetching Apicurio Registry $registry_version"
        mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -DoutputDirectory="$staging" \
            -Dartifact="io.apicurio:apicurio-registry-app:$registry_version:tar.gz:all" >&2
        tar xzf "$staging"/*.tar.gz -C "$staging"
        rm "$staging"/*.tar.gz
        chmod 755 "$staging"
        mv -T "$staging" "$cache/registry-$registry_version" 2>/dev/null || rm -rf "$staging"
    fi
}

# s3s-fs, an S3 server in Rust, which stores objects as files. It is compiled once, in about a minute.
prepare_s3() {
    if [ ! -e "$cache/s3s-fs-$s3_version" ]; then
        mkdir -p "$cache"
        local staging
        staging=$(mktemp -d "$cache/staging.XXXXXX")
        say "compiling s3s-fs $s3_version"
        cargo install s3s-fs --version "$s3_version" --locked --debug --features binary --no-track --quiet \
            --root "$staging" --target-dir "$staging/target" >&2
        rm -rf "$staging/target"
        chmod 755 "$staging"
        mv -T "$staging" "$cache/s3s-fs-$s3_version" 2>/dev/null || rm -rf "$staging"
    fi
}

prepare_postgres() { [ -n "$(pg_bin)" ] || install_packages postgresql; }
prepare_redis() { command -v redis-server >/dev/null || install_packages redis-server; }

# Writes the properties of the broker and controller NAME, with ID in the quorum of VOTERS, a list of ID@HOST:PORT.
# LISTENERS are additional listeners and ADVERTISED their advertised addresses; each begins with a comma. Every broker
# of a quorum has a replica of every partition, and more than half of the replicas must be in sync.
write_properties() { # DIR NAME ID VOTERS [LISTENERS ADVERTISED]
    local dir=$1 name=$2 id=$3 port voters copies in_sync
    IFS=, read -ra voters <<< "$4"
    copies=${#voters[@]}
    in_sync=$((copies / 2 + 1))
    port=$(free_port)
    echo "$port" > "$dir/$name.port"
    rm -rf "${dir:?}/$name"
    mkdir -p "$dir/$name"
    cat > "$dir/$name.properties" <<EOF
process.roles=broker,controller
node.id=$id
controller.quorum.voters=$4
listeners=BROKER://127.0.0.1:$port,CONTROLLER://${voters[id - 1]#*@}${5:-}
advertised.listeners=BROKER://127.0.0.1:$port${6:-}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,TLS:SSL,MUTUAL:SSL,SASL:SASL_SSL
controller.listener.names=CONTROLLER
inter.broker.listener.name=BROKER
log.dirs=$dir/$name/data
auto.create.topics.enable=false
default.replication.factor=$copies
min.insync.replicas=$in_sync
offsets.topic.replication.factor=$copies
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$copies
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=$in_sync
transaction.abort.timed.out.transaction.cleanup.interval.ms=200
group.initial.rebalance.delay.ms=0
message.max.bytes=12000000
replica.fetch.max.bytes=12000000
num.network.threads=2
num.io.threads=4
EOF
}

# Runs Kafka's StorageTool in the version of a directory's brokers.
storage_tool() { # DIR ARGUMENTS...
    java -cp "$cache/kafka-$(cat "$1/kafka.version")/*" kafka.tools.StorageTool "${@:2}"
}

format_storage() { # DIR NAME CLUSTER ARGUMENTS...
    storage_tool "$1" format -t "$3" -c "$1/$2.properties" "${@:4}" > "$1/$2.format.log" 2>&1 \
        || { cat "$1/$2.format.log" >&2; return 1; }
}

configure_kafka() { # DIR
    local listeners='' advertised='' scram=() name cluster
    echo "$kafka_version" > "$1/kafka.version"
    # Clients connect to the address that a broker advertises, so clients of the proxy need their own listener.
    if [ -n "${HEADWATER_KAFKA_PROXY:-}" ]; then
        free_port > "$1/kafka.behind"
        listeners+=",PROXIED://127.0.0.1:$(cat "$1/kafka.behind")"
        advertised+=",PROXIED://127.0.0.1:$HEADWATER_KAFKA_PROXY"
    fi
    if [ -e "$1/tls" ]; then
        for name in TLS MUTUAL SASL; do
            free_port > "$1/kafka.$name"
            listeners+=",$name://127.0.0.1:$(cat "$1/kafka.$name")"
            advertised+=",$name://127.0.0.1:$(cat "$1/kafka.$name")"
        done
        scram=(--add-scram 'SCRAM-SHA-256=[name=alice,password=alice-secret]'
            --add-scram 'SCRAM-SHA-512=[name=alice,password=alice-secret]')
    fi
    write_properties "$1" kafka 1 "1@127.0.0.1:$(free_port)" "$listeners" "$advertised"
    if [ -e "$1/tls" ]; then
        cat >> "$1/kafka.properties" <<EOF
ssl.keystore.type=PEM
ssl.keystore.location=$1/tls/server.both
ssl.truststore.type=PEM
ssl.truststore.location=$1/tls/ca.pem
listener.name.mutual.ssl.client.auth=required
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="alice-secret";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
EOF
    fi
    cluster=$(storage_tool "$1" random-uuid 2>/dev/null | tail -1)
    format_storage "$1" kafka "$cluster" "${scram[@]}"
}

# Configures three brokers, kafka-1 to kafka-3, with short timeouts for a broker that is down.
configure_kafka3() { # DIR
    local id voters cluster
    echo "$kafka_version" > "$1/kafka.version"
    voters="1@127.0.0.1:$(free_port),2@127.0.0.1:$(free_port),3@127.0.0.1:$(free_port)"
    cluster=$(storage_tool "$1" random-uuid 2>/dev/null | tail -1)
    for id in 1 2 3; do
        write_properties "$1" "kafka-$id" "$id" "$voters"
        cat >> "$1/kafka-$id.properties" <<EOF
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=4000
EOF
        format_storage "$1" "kafka-$id" "$cluster"
    done
}

launch_broker() { # DIR NAME
    local java=(java -Xms256m -Xmx768m)
    # Three brokers share the memory of one.
    if [ "$2" != kafka ]; then java=(java -Xms128m -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1); fi
    "${java[@]}" -cp "$cache/kafka-$(cat "$1/kafka.version")/*" kafka.Kafka "$1/$2.properties" \
        >> "$1/$2.log" 2>&1 < /dev/null &
    echo $! > "$1/$2.pid"
}

await_broker() { # DIR NAME
    wait_for "$2" "$1/$2.pid" port_answers "$(cat "$1/$2.port")" || { tail -20 "$1/$2.log" >&2; return 1; }
}

start_broker() { launch_broker "$1" "$2" && await_broker "$1" "$2"; } # DIR NAME
start_kafka() { start_broker "$1" kafka; } # DIR

start_kafka3() { # DIR
    local id
    for id in 1 2 3; do launch_broker "$1" "kafka-$id"; done
    for id in 1 2 3; do
        await_broker "$1" "kafka-$id" || { end_brokers "$1"; return 1; }
    done
}

configure_postgres() { # DIR
    free_port > "$1/postgres.port"
    mkdir -p "$1/postgres"
    [ "$(id -u)" != 0 ] || chown postgres "$1/postgres"
    pg_user "$(pg_bin)/initdb" -D "$1/postgres/data" -U headwater -A trust -E UTF8 --locale=C.UTF-8 --no-sync \
        > "$1/postgres.init.log" 2>&1 || { cat "$1/postgres.init.log" >&2; return 1; }
    [ -e "$1/tls" ] || return 0
    local data=$1/postgres/data
    cp "$1/tls/server.pem" "$1/tls/server.key" "$1/tls/ca.pem" "$data"
    cat > "$data/pg_hba.conf" <<EOF
hostssl all certified 127.0.0.1/32 cert
hostssl all locked 127.0.0.1/32 scram-sha-256
host all headwater 127.0.0.1/32 trust
EOF
    cat >> "$data/postgresql.conf" <<EOF
ssl = on
ssl_cert_file = 'server.pem'
ssl_key_file = 'server.key'
ssl_ca_file = 'ca.pem'
EOF
    if [ "$(id -u)" = 0 ]; then chown postgres "$data"/{server.pem,server.key,ca.pem}; fi
    chmod 600 "$data/server.key"
}

start_postgres() { # DIR
    local port fresh=
    port=$(cat "$1/postgres.port")
    [ -e "$1/postgres.made" ] || fresh=1
    # The postmaster replaces the shell of this background job, so that $! is its pid.
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
        if [ -e "$1/tls" ]; then
            "$(pg_bin)/psql" -q -h 127.0.0.1 -p "$port" -U headwater -d headwater >&2 <<EOF
CREATE ROLE certified LOGIN;
CREATE ROLE locked LOGIN PASSWORD 'locked-secret';
GRANT CREATE ON SCHEMA public TO certified, locked;
EOF
        fi
        touch "$1/postgres.made"
    fi
}

configure_registry() { free_port > "$1/registry.port"; } # DIR

start_registry() { # DIR
    local port
    port=$(cat "$1/registry.port")
    java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dquarkus.http.host=127.0.0.1 -Dquarkus.http.port="$port" \
        -jar "$cache/registry-$registry_version/apicurio-registry-app-$registry_version-runner.jar" \
        >> "$1/registry.log" 2>&1 < /dev/null &
    echo $! > "$1/registry.pid"
    wait_for registry "$1/registry.pid" port_answers "$port"
}

# The bucket `states` belongs to the keys in `start_s3`.
configure_s3() { # DIR
    free_port > "$1/s3.port"
    mkdir -p "$1/s3/states"
}

start_s3() { # DIR
    "$cache/s3s-fs-$s3_version/bin/s3s-fs" --host 127.0.0.1 --port "$(cat "$1/s3.port")" \
        --access-key headwater --secret-key headwater-secret "$1/s3" >> "$1/s3.log" 2>&1 < /dev/null &
    echo $! > "$1/s3.pid"
    wait_for s3 "$1/s3.pid" port_answers "$(cat "$1/s3.port")"
}

configure_redis() { # DIR
    free_port > "$1/redis.port"
    mkdir -p "$1/redis"
    [ -e "$1/tls" ] || return 0
    free_port > "$1/redis.tls"
    # "app" may not read the configuration.
    cat > "$1/redis/users.acl" <<EOF
user default on nopass ~* &* +@all
user ops on >ops-secret ~* &* +@all
user app on >app-secret ~* &* +@all -config
EOF
}

start_redis() { # DIR
    local port tls=()
    port=$(cat "$1/redis.port")
    if [ -e "$1/tls" ]; then
        tls=(--tls-port "$(cat "$1/redis.tls")" --tls-cert-file "$1/tls/server.pem" --tls-key-file "$1/tls/server.key"
            --tls-ca-cert-file "$1/tls/ca.pem" --tls-auth-clients optional --aclfile "$1/redis/users.acl")
    fi
    redis-server --bind 127.0.0.1 --port "$port" --dir "$1/redis" --appendonly yes --appendfsync always \
        --maxmemory-policy noeviction --save '' "${tls[@]}" >> "$1/redis.log" 2>&1 < /dev/null &
    echo $! > "$1/redis.pid"
    wait_for redis "$1/redis.pid" port_answers "$port"
}

# Starts a service, or a broker such as kafka-2.
start_service() { # DIR SERVICE
    case $2 in
        kafka-*) start_broker "$1" "$2" ;;
        *) "start_$2" "$1" ;;
    esac
}

# Sends a signal to a process of ours, and kills it if it does not exit within 30 s.
end_process() { # PIDFILE SIGNAL
    [ -e "$1" ] || return 0
    local pid
    pid=$(cat "$1")
    kill "-$2" "$pid" 2>/dev/null || true
    for _ in $(seq 300); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    if kill -KILL "$pid" 2>/dev/null; then say "$(basename "$1" .pid) did not exit within 30 s: killed"; fi
    rm -f "$1"
}

# Kills the brokers, since a broker that shuts down cleanly would wait for those that are gone.
end_brokers() { # DIR
    local pidfile
    for pidfile in "$1"/kafka*.pid; do end_process "$pidfile" KILL; done
}
