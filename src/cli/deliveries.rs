//! `headwater deliveries`: lists deliveries of routes that wait or were given up, and sends those again.

use serde_json::{Value, json};

use super::command::{ListDeliveriesArgs, RetryDeliveriesArgs};
use super::output::{self, Table, escaped};
use super::{config_error, load};
use crate::assembly;
use crate::config::Config;
use crate::json::rfc3339;
use crate::routes::{ListedDelivery, Outbox, OutboxPlace, StoreError};
use crate::wall::wall_ms;

/// Lists the deliveries of a configuration's routes.
///
/// # Errors
/// If they cannot be read or printed.
pub fn list(args: &ListDeliveriesArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let place = place(&config)?;
    let found = block_on(async {
        match Outbox::open(&place).await? {
            // One more than is shown tells whether there are more.
            Some(mut outbox) => outbox.list(args.dead, args.limit + 1).await,
            None => Ok(Vec::new()),
        }
    })?;
    let (shown, has_more) = (&found[..found.len().min(args.limit)], found.len() > args.limit);
    let json = || json!({ "deliveries": shown.iter().map(object).collect::<Vec<_>>(), "more": has_more });
    Ok(output::report(args.json, json, || text(shown, has_more))?)
}

/// Lets the dead deliveries of a configuration's routes be sent again by its run.
///
/// # Errors
/// If they cannot be changed, or the result cannot be printed.
pub fn retry(args: &RetryDeliveriesArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let place = place(&config)?;
    if let Some(name) = &args.route
        && config.routes.iter().all(|route| route.name != *name)
    {
        let known: Vec<_> = config.routes.iter().map(|route| route.name.as_str()).collect();
        let message = format!("--route names the unknown route {name:?}; known routes: {}", known.join(", "));
        return Err(config_error("routes", message).into());
    }
    let retried = block_on(async {
        match Outbox::open(&place).await? {
            Some(mut outbox) => outbox.retry(args.route.as_deref(), args.id.as_deref(), wall_ms()).await,
            None => Ok(0),
        }
    })?;
    let text = || {
        let noun = if retried == 1 { "delivery" } else { "deliveries" };
        format!("{retried} {noun} will be sent again by the run of {}\n", config.plan.pipeline)
    };
    Ok(output::report(args.json, || json!({ "retried": retried }), text)?)
}

fn place(config: &Config) -> anyhow::Result<OutboxPlace> {
    let message = "the configuration has no routes: add a section [[routes]]";
    Ok(assembly::outbox(config).ok_or_else(|| config_error("routes", message))?)
}

fn block_on<T>(work: impl Future<Output = Result<T, StoreError>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work)?)
}

fn text(shown: &[ListedDelivery], has_more: bool) -> String {
    if shown.is_empty() {
        return "no deliveries\n".to_owned();
    }
    let mut table = Table::new(&["state", "route", "alerts", "attempts", "made", "next", "id", "error"]);
    for delivery in shown {
        let ListedDelivery { id, route, attempts, created_ms, next_ms, alerts, error, .. } = delivery;
        table.add([
            state(delivery).to_owned(),
            route.clone(),
            alerts.to_string(),
            attempts.to_string(),
            rfc3339(*created_ms),
            if delivery.is_dead { "-".to_owned() } else { rfc3339(*next_ms) },
            escaped(id, 80),
            if error.is_empty() { "-".to_owned() } else { escaped(error, 200) },
        ]);
    }
    let more = if has_more { "and more: --limit shows them\n" } else { "" };
    format!("{table}{more}")
}

fn state(delivery: &ListedDelivery) -> &'static str {
    if delivery.is_dead { "dead" } else { "waiting" }
}

fn object(delivery: &ListedDelivery) -> Value {
    let ListedDelivery { id, route, is_dead, attempts, created_ms, next_ms, alerts, error } = delivery;
    json!({
        "id": id,
        "route": route,
        "state": state(delivery),
        "alerts": alerts,
        "attempts": attempts,
        "made": rfc3339(*created_ms),
        "next": (!is_dead).then(|| rfc3339(*next_ms)),
        "error": (!error.is_empty()).then_some(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(is_dead: bool, error: &str) -> ListedDelivery {
        ListedDelivery {
            id: "a1:raised:7".to_owned(),
            route: "desk".to_owned(),
            is_dead,
            attempts: 3,
            created_ms: 0,
            next_ms: 1000,
            alerts: 1,
            error: error.to_owned(),
        }
    }

    #[test]
    fn deliveries_are_listed_as_a_table_and_as_json() {
        let listed = [delivery(true, "the receiver answered 400\u{1b}[31m"), delivery(false, "")];
        assert_eq!(
            text(&listed, true),
            "state    route  alerts  attempts  made                      next                      id           error\n\
             dead     desk        1         3  1970-01-01T00:00:00.000Z  -                         a1:raised:7  \
             the receiver answered 400\\u{1b}[31m\n\
             waiting  desk        1         3  1970-01-01T00:00:00.000Z  1970-01-01T00:00:01.000Z  a1:raised:7  -\n\
             and more: --limit shows them\n"
        );
        assert_eq!(text(&[], false), "no deliveries\n");
        let dead = object(&listed[0]);
        assert_eq!(
            (&dead["state"], &dead["next"], &dead["attempts"]),
            (&json!("dead"), &Value::Null, &json!(3))
        );
        assert_eq!(object(&listed[1])["error"], Value::Null);
    }
}
