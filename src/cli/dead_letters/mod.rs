//! `headwater dead-letters`: lists, groups and shows dead letters, sends them to the source topic again, or deletes them.

mod show;

use serde_json::{Value, json};

use super::command::{DeadLettersCommand, GroupsArgs, ListArgs, PurgeArgs, RetryArgs, ShowArgs};
use super::output::{self, Table, counted, escaped, out, outln};
use super::{config_error, load};
use crate::assembly;
use crate::config::Config;
use crate::dead_letters::{
    Edit, Group, Groups, Letter, LetterStore, LettersError, MAX_PAGE, Purged, RetryReport, RetryRequest,
    Skipped, Storage,
};
use crate::source::kafka::retry::MOST_RETRIES;

/// The maximum length of a displayed value, in characters.
const MAX_DISPLAY: usize = 60;

/// Runs a command on dead letters.
///
/// # Errors
/// If the dead letters cannot be read, sent or deleted, or the result cannot be printed.
pub fn run(command: &DeadLettersCommand) -> anyhow::Result<()> {
    match command {
        DeadLettersCommand::List(args) => list(args),
        DeadLettersCommand::Groups(args) => groups(args),
        DeadLettersCommand::Show(args) => show(args),
        DeadLettersCommand::Retry(args) => retry(args),
        DeadLettersCommand::Purge(args) => purge(args),
    }
}

/// Returns the dead letters of a configuration, with further fields masked.
fn store(config: &Config, mask: &[String]) -> anyhow::Result<LetterStore> {
    let message = "no sink stores dead letters that can be read again: add `dead-letters` to the topics of [sinks.kafka], or \
                   `dead_letters` to the tables of [sinks.postgres] or [sinks.sqlite]; those of a file sink are in \
                   dead-letters.ndjson";
    let mut store = assembly::dead_letters(config).ok_or_else(|| config_error("sinks", message))?;
    store.mask.extend_from_slice(mask);
    Ok(store)
}

/// Describes the place of the dead letters.
fn place(store: &LetterStore) -> String {
    match &store.storage {
        Storage::Topic(topic) => format!("topic {}", topic.topic),
        Storage::Table(_) => "table dead_letters".to_owned(),
    }
}

/// Prints the dead letters one by one, since there may be more than fit in memory. Those of other pipelines in the same
/// topic are only counted.
fn list(args: &ListArgs) -> anyhow::Result<()> {
    let store = store(&load(&args.config)?, &args.mask)?;
    let (filter, pipeline) = (args.filter.filter(), &store.pipeline);
    if args.json {
        let topic = match &store.storage {
            Storage::Topic(topic) => Some(&topic.topic),
            Storage::Table(_) => None,
        };
        out!("{{\"topic\":{},\"pipeline\":{},\"letters\":[", json!(topic), json!(pipeline))?;
    }
    let (mut listed, mut of_others, mut cursor) = (0u64, 0u64, None);
    let most = args.limit.unwrap_or(u64::MAX);
    loop {
        let wanted = usize::try_from(most - listed).unwrap_or(MAX_PAGE).min(MAX_PAGE);
        let page = store.page(&filter, cursor.as_deref(), wanted)?;
        of_others += page.of_other_pipelines;
        for letter in &page.dead_letters {
            match (args.json, listed) {
                (true, 0) => out!("{}", object(letter, pipeline))?,
                (true, _) => out!(",{}", object(letter, pipeline))?,
                (false, 0) => outln!("{HEADINGS}\n{}", line(letter))?,
                (false, _) => outln!("{}", line(letter))?,
            }
            listed += 1;
        }
        cursor = page.next_cursor;
        if cursor.is_none() || listed >= most {
            break;
        }
    }
    if args.json {
        outln!("],\"of_other_pipelines\":{of_others}}}")?;
    } else {
        let others =
            if of_others == 0 { String::new() } else { format!(", and {of_others} of other pipelines") };
        outln!("{} of {pipeline} in {}{others}", counted(listed, "dead letter"), place(&store))?;
    }
    Ok(())
}

fn object(letter: &Letter, pipeline: &str) -> Value {
    let mut object = json!(letter);
    object["pipeline"] = json!(pipeline);
    object
}

const HEADINGS: &str = "AT         SOURCE               REASON     TIME                      SENT  BYTES  FIELD         MESSAGE: VALUE";

fn line(letter: &Letter) -> String {
    let text = |text: &Option<String>, max| escaped(text.as_deref().unwrap_or("-"), max);
    format!(
        "{:<10} {:<20} {:<10} {:<24} {:>5} {:>6}  {:<13} {}: {}",
        letter.id.to_string(),
        source(letter),
        escaped(&letter.reason, MAX_DISPLAY),
        letter.time.as_deref().unwrap_or("-"),
        sent_again(letter),
        letter.bytes,
        text(&letter.field, MAX_DISPLAY),
        text(&letter.message, 200),
        match (&letter.value, letter.bytes) {
            (Some(value), _) => escaped(value, MAX_DISPLAY),
            (None, 0) => "(no value)".to_owned(),
            (None, _) => "(not text)".to_owned(),
        },
    )
}

/// Returns the position of the rejected record.
fn source(letter: &Letter) -> String {
    let number = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    let source = &letter.source;
    let partition = number(source.partition.map(|partition| partition.to_string()));
    let position = format!("{partition}:{}", number(source.offset.map(|offset| offset.to_string())));
    match &source.topic {
        Some(topic) => format!("{}:{position}", escaped(topic, MAX_DISPLAY)),
        None => position,
    }
}

fn sent_again(letter: &Letter) -> &'static str {
    match letter.sent_again {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
}

fn groups(args: &GroupsArgs) -> anyhow::Result<()> {
    let store = store(&load(&args.config)?, &[])?;
    let found = store.groups(&args.filter.filter())?;
    Ok(output::report(args.json, || json!(found), || groups_text(&store, &found))?)
}

fn groups_text(store: &LetterStore, Groups { groups, complete }: &Groups) -> String {
    let mut table =
        Table::new(&["reason", "field", "producer", "count", "first seen", "last seen", "example"]);
    let text = |text: &Option<String>| escaped(text.as_deref().unwrap_or("-"), MAX_DISPLAY);
    for group in groups {
        let Group { reason, field, producer, count, first_seen, last_seen, example } = group;
        table.add([
            escaped(reason, MAX_DISPLAY),
            text(field),
            text(producer),
            count.to_string(),
            text(first_seen),
            text(last_seen),
            text(&example.map(|id| id.to_string())),
        ]);
    }
    let letters = groups.iter().map(|group| group.count).sum();
    let all = format!("{} of {} in {}", counted(letters, "dead letter"), store.pipeline, place(store));
    let table = if groups.is_empty() { String::new() } else { table.to_string() };
    let rest = if *complete {
        ""
    } else {
        "; there are more, which were not counted: choose fewer, by time or reason"
    };
    format!("{table}{all}{rest}\n")
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let store = store(&load(&args.config)?, &args.mask)?;
    let letter = store.letter(args.id)?.ok_or(LettersError::NotFound(args.id))?;
    let json = || {
        let mut object = object(&letter, &store.pipeline);
        let headers = letter.headers.iter().map(|(name, value)| json!({ "name": name, "value": value }));
        object["headers"] = Value::Array(headers.collect());
        object
    };
    Ok(output::report(args.json, json, || show::text(&letter))?)
}

fn retry(args: &RetryArgs) -> anyhow::Result<()> {
    let store = store(&load(&args.config)?, &[])?;
    let edit = match &args.edit {
        Some(path) => {
            let read = std::fs::read(path);
            Some(Edit::Value(read.map_err(|error| {
                anyhow::Error::new(error).context(format!("cannot read {}", path.display()))
            })?))
        }
        None => Some(Edit::Set(args.set.clone())).filter(|_| !args.set.is_empty()),
    };
    let request = RetryRequest {
        ids: args.ids.clone(),
        filter: args.filter.filter(),
        limit: args.limit,
        edit,
        dry_run: args.dry_run,
        include_late: args.include_late,
        per_second: args.rate,
    };
    let report = store.retry(&request)?;
    let topic = store.source.as_ref().map_or("", |source| &source.topic);
    Ok(output::report(args.json, || json!(report), || sentence(&report, topic) + "\n")?)
}

fn sentence(report: &RetryReport, topic: &str) -> String {
    let RetryReport { sent, dry_run, skipped, exhausted, of_other_pipelines } = *report;
    let Skipped { sent_before, late, truncated } = skipped;
    let mut unsent = Vec::new();
    for (count, reason) in [
        (sent_before, "were already sent".to_owned()),
        (late, "are late (--include-late sends them)".to_owned()),
        (exhausted, format!("have been retried {MOST_RETRIES} times")),
        (truncated, "are truncated records".to_owned()),
        (of_other_pipelines, "are of other pipelines or source topics".to_owned()),
    ] {
        if count > 0 {
            unsent.push(format!("{count} {reason}"));
        }
    }
    let unsent = if unsent.is_empty() { String::new() } else { format!("; not sent: {}", unsent.join(", ")) };
    let sent = counted(sent, "dead letter");
    match dry_run {
        true => format!("{sent} would be sent to topic {topic}{unsent}; nothing was sent"),
        false => format!("{sent} sent to topic {topic}{unsent}"),
    }
}

fn purge(args: &PurgeArgs) -> anyhow::Result<()> {
    let store = store(&load(&args.config)?, &[])?;
    let purged = store.purge(args.before, args.all_pipelines, args.dry_run)?;
    let text = || purge_text(&store, args.before, &purged);
    Ok(output::report(args.json, || json!(purged), text)?)
}

fn purge_text(store: &LetterStore, before_ms: i64, purged: &Purged) -> String {
    let Purged { deleted, of_other_pipelines, dry_run } = *purged;
    let done = if dry_run { "would be deleted" } else { "deleted" };
    let others = match of_other_pipelines {
        0 => String::new(),
        others => format!(" and {others} of other pipelines"),
    };
    let how = match &store.storage {
        Storage::Topic(_) => {
            "in each partition, everything before the first letter that was written at or after that time"
        }
        Storage::Table(_) => "rows whose record has no timestamp are kept",
    };
    format!(
        "{} of {}{others} before {} {done} from {} ({how})\n",
        counted(deleted, "dead letter"),
        store.pipeline,
        crate::json::rfc3339(before_ms),
        place(store),
    )
}

#[cfg(test)]
mod tests;
