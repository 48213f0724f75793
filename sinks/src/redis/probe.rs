//! Checks of a Redis server: whether a sink can write there, and what may cost data later.

use redis::{Connection, RedisResult, cmd};

use super::{RESPONSE_TIMEOUT, RedisServer, connect};

/// The oldest version with everything that the script uses, as text and as number.
const LEAST_VERSION: (&str, u32) = ("5.0", 5);

/// The properties of a server, as it reports them.
#[derive(Debug, Default)]
pub(super) struct Server {
    version: String,
    mode: String,
    is_replica: bool,
    /// True if the server has a limit of memory at which it removes any key, not only those with a time to live.
    evicts_any_key: bool,
    /// True if the server writes a log from which it restores its data.
    has_log: bool,
}

impl Server {
    /// Queries a server. Its user need not be permitted to use `INFO`; then nothing is known.
    pub fn ask(connection: &mut Connection) -> RedisResult<Server> {
        match cmd("INFO").query::<String>(connection) {
            Ok(info) => Ok(Server::parse(&info)),
            Err(error) if error.code() == Some("NOPERM") => Ok(Server { has_log: true, ..Server::default() }),
            Err(error) => Err(error),
        }
    }

    fn parse(info: &str) -> Server {
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(field, _)| *field == name).map_or("", |(_, value)| value.trim()).to_owned()
        };
        let has_limit = !matches!(field("maxmemory").as_str(), "" | "0");
        Server {
            version: field("redis_version"),
            mode: field("redis_mode"),
            is_replica: field("role") == "slave",
            evicts_any_key: has_limit && field("maxmemory_policy").starts_with("allkeys"),
            has_log: field("aof_enabled") == "1",
        }
    }

    /// Returns the reason why a sink cannot write to this server; None if it can.
    pub fn objection(&self) -> Option<String> {
        let (least, major) = LEAST_VERSION;
        let is_old = self
            .version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .is_some_and(|v: u32| v < major);
        match self.mode.as_str() {
            "cluster" => Some(
                "it is a node of a Redis Cluster, which cannot write profiles and progress of several slots together: use \
                 a single server, or one with replicas and Sentinel"
                    .to_owned(),
            ),
            "sentinel" => {
                Some("it is a Sentinel: give the address of the primary, or of a proxy that follows it".to_owned())
            }
            _ if is_old => Some(format!("its version is {}, and at least {least} is required", self.version)),
            _ if self.is_replica => Some("it is a replica: give the address of the primary".to_owned()),
            _ => None,
        }
    }

    /// Returns what may cost data later.
    pub fn warnings(&self) -> Vec<&'static str> {
        let eviction = "Redis removes any key when its memory is full, also the progress of this sink: set \
                        `maxmemory-policy volatile-ttl` (or another of `volatile-…`), which removes profiles only";
        let loss = "Redis has no append-only log, so profiles and progress are lost or go back when it stops: set \
                    `appendonly yes`; otherwise the start after that is refused until `--adopt-sink`";
        [(self.evicts_any_key, eviction), (!self.has_log, loss)]
            .into_iter()
            .filter_map(|(applies, warning)| applies.then_some(warning))
            .collect()
    }
}

/// Connects to the server of a sink and checks that a sink can write there, without writing. Returns what was found.
///
/// # Errors
/// If the server cannot be used.
pub fn probe(server: &RedisServer) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let client = server.client(RESPONSE_TIMEOUT)?;
    // Connecting loads the script, so it also shows that the user may run scripts.
    let asked = connect(&client).and_then(|(mut connection, _)| Server::ask(&mut connection));
    let found = asked.map_err(|error| client.failure(error))?;
    if let Some(objection) = found.objection() {
        return Err(format!("Redis at {}: {objection}", client.address()).into());
    }
    let version =
        if found.version.is_empty() { String::new() } else { format!(", version {}", found.version) };
    let warnings: String = found.warnings().iter().map(|warning| format!("; {warning}")).collect();
    Ok(format!("reachable{version}{warnings}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_cannot_be_written_are_refused() {
        let info = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n# Memory\r\nmaxmemory:0\r\n\
                    maxmemory_policy:allkeys-lru\r\n# Persistence\r\naof_enabled:1\r\n# Replication\r\nrole:master\r\n";
        let server = Server::parse(info);
        assert_eq!(
            (server.version.as_str(), server.objection(), server.warnings()),
            ("7.0.15", None, vec![])
        );
        for (from, to, expected) in [
            ("standalone", "cluster", "Redis Cluster"),
            ("standalone", "sentinel", "Sentinel"),
            ("7.0.15", "3.2.1", "its version is 3.2.1"),
            ("role:master", "role:slave", "replica"),
        ] {
            let objection = Server::parse(&info.replace(from, to)).objection();
            assert!(objection.as_ref().is_some_and(|text| text.contains(expected)), "{objection:?}");
        }
        for (from, to, expected) in [
            ("maxmemory:0", "maxmemory:1000", "removes any key"),
            ("aof_enabled:1", "aof_enabled:0", "no append-only log"),
        ] {
            let server = Server::parse(&info.replace(from, to));
            assert!(server.warnings().len() == 1 && server.warnings()[0].contains(expected), "{server:?}");
        }
    }
}
