//! `headwater dead-letters`: lists dead letters, or sends them to the source topic again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::command::{ListArgs, RetryArgs};
use super::output::{self, counted, escaped, out, outln};
use super::{config_error, kafka_source, load};
use crate::config::{Config, KafkaSinkConfig, OutputKind};
use crate::json::rfc3339;
use crate::source::SourceError;
use crate::source::kafka::dead_letters::{DeadLetter, DeadLetters, header};
use crate::source::kafka::retry::{MOST_RETRIES, Retried, Retry};

/// The maximum length of a displayed value, in characters.
const MAX_DISPLAY: usize = 60;

/// Lists the dead letters of a configuration's pipeline.
///
/// # Errors
/// If they cannot be read or printed.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let (sink, topic) = letters_topic(&config)?;
    print(&config, topic, read(sink, topic, args.reason.as_deref())?, args.json)
}

/// Sends the dead letters of a configuration's pipeline to the source topic.
///
/// # Errors
/// If they cannot be read or sent, or the result cannot be printed.
pub fn retry(args: &RetryArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let (sink, topic) = letters_topic(&config)?;
    let source = kafka_source(&config)?;
    let retry = Retry {
        brokers: &source.brokers,
        options: &source.options,
        pipeline: &config.plan.pipeline,
        source_topic: &source.topic,
        letters_topic: topic,
        include_late: args.include_late,
    };
    let retried = retry.run(read(sink, topic, args.reason.as_deref())?)?;
    Ok(output::report(args.json, || report(&retried), || sentence(&retried, &source.topic) + "\n")?)
}

/// Reads the dead letters with a reason, or all.
fn read<'r>(
    sink: &KafkaSinkConfig,
    topic: &str,
    reason: Option<&'r str>,
) -> anyhow::Result<impl Iterator<Item = Result<DeadLetter, SourceError>> + use<'r>> {
    let letters = DeadLetters::read_all(&sink.brokers, &sink.options, topic)?;
    Ok(letters.filter(move |letter| match (letter, reason) {
        (Ok(letter), Some(reason)) => letter.reason() == reason,
        _ => true,
    }))
}

/// Returns the topic of dead letters and the sink that writes it.
fn letters_topic(config: &Config) -> anyhow::Result<(&KafkaSinkConfig, &str)> {
    let mut sinks = config.sinks.kafka();
    let found = sinks.find_map(|sink| Some((sink, sink.topics.get(&OutputKind::DeadLetters)?.as_str())));
    let message = "there is no topic of dead letters: add `dead-letters` to the topics of [sinks.kafka], or read the table `dead_letters`";
    Ok(found.ok_or_else(|| config_error("sinks.kafka.topics", message))?)
}

/// Prints the dead letters of this pipeline one by one, since there may be more than fit in memory. Those of other
/// pipelines in the same topic are only counted.
fn print(
    config: &Config,
    topic: &str,
    letters: impl Iterator<Item = Result<DeadLetter, SourceError>>,
    json: bool,
) -> anyhow::Result<()> {
    let pipeline = &*config.plan.pipeline;
    let is_ours = |letter: &DeadLetter| letter.header(header::PIPELINE).is_none_or(|name| name == pipeline);
    let (mut listed, mut of_others) = (0u64, 0u64);
    if json {
        out!("{{\"topic\":{},\"pipeline\":{},\"letters\":[", json!(topic), json!(pipeline))?;
    }
    for letter in letters {
        let letter = letter?;
        if !is_ours(&letter) {
            of_others += 1;
            continue;
        }
        match (json, listed) {
            (true, 0) => out!("{}", object(&letter))?,
            (true, _) => out!(",{}", object(&letter))?,
            (false, _) => {
                if listed == 0 {
                    outln!("{HEADINGS}")?;
                }
                outln!("{}", line(&letter))?;
            }
        }
        listed += 1;
    }
    if json {
        outln!("],\"of_other_pipelines\":{of_others}}}")?;
    } else {
        let others =
            if of_others == 0 { String::new() } else { format!(", and {of_others} of other pipelines") };
        outln!("{} of {pipeline} in topic {topic}{others}", counted(listed, "dead letter"))?;
    }
    Ok(())
}

const HEADINGS: &str = "AT         SOURCE               REASON     TIME                      BYTES  FIELD         MESSAGE: VALUE";

fn line(letter: &DeadLetter) -> String {
    let of = |name| letter.header(name).unwrap_or("-");
    let at = format!("{}:{}", letter.position.partition.0, letter.position.offset.0);
    let source = format!("{}:{}", of(header::SOURCE_PARTITION), of(header::SOURCE_OFFSET));
    let source = match letter.header(header::SOURCE_TOPIC) {
        Some(topic) => format!("{}:{source}", escaped(topic, MAX_DISPLAY)),
        None => source,
    };
    let field = letter.header(header::FIELD).filter(|field| !field.is_empty()).unwrap_or("-");
    let value = letter.value.as_deref();
    format!(
        "{at:<10} {source:<20} {:<10} {:<24} {:>6}  {:<13} {}: {}",
        escaped(of(header::REASON), MAX_DISPLAY),
        rfc3339(letter.timestamp),
        value.map_or(0, <[u8]>::len),
        escaped(field, MAX_DISPLAY),
        escaped(of(header::MESSAGE), 200),
        value.map_or("(no value)".into(), |value| escaped(&String::from_utf8_lossy(value), MAX_DISPLAY)),
    )
}

fn object(letter: &DeadLetter) -> Value {
    let number = |name| letter.header(name).and_then(|text| text.parse::<i64>().ok());
    let text = |name| letter.header(name).filter(|text| !text.is_empty());
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    put("partition", json!(letter.position.partition.0));
    put("offset", json!(letter.position.offset.0));
    put("time", json!(rfc3339(letter.timestamp)));
    put("reason", json!(letter.reason()));
    put("field", json!(text(header::FIELD)));
    put("message", json!(text(header::MESSAGE)));
    put("retries", json!(letter.retries()));
    put("pipeline", json!(text(header::PIPELINE)));
    put(
        "source",
        json!({
            "topic": text(header::SOURCE_TOPIC),
            "partition": number(header::SOURCE_PARTITION),
            "offset": number(header::SOURCE_OFFSET),
            "timestamp": number(header::SOURCE_TIMESTAMP),
        }),
    );
    for (name, bytes) in [("key", &letter.key), ("value", &letter.value)] {
        match bytes.as_deref().map(std::str::from_utf8) {
            None => put(name, Value::Null),
            Some(Ok(text)) => put(name, json!(text)),
            Some(Err(_)) => {
                put(&format!("{name}_base64"), json!(STANDARD.encode(bytes.as_deref().unwrap_or_default())));
            }
        }
    }
    put("bytes", json!(letter.value.as_ref().map_or(0, Vec::len)));
    if let Some(length) = number(header::ORIGINAL_LENGTH) {
        put("original_bytes", json!(length));
    }
    Value::Object(object)
}

fn report(retried: &Retried) -> Value {
    let Retried { sent, before, late, exhausted, truncated, of_others } = retried;
    json!({
        "sent": sent,
        "exhausted": exhausted,
        "skipped": { "sent_before": before, "late": late, "truncated": truncated },
        "of_other_pipelines": of_others,
    })
}

fn sentence(retried: &Retried, topic: &str) -> String {
    let Retried { sent, before, late, exhausted, truncated, of_others } = *retried;
    let mut unsent = Vec::new();
    for (count, reason) in [
        (before, "were already sent".to_owned()),
        (late, "are late (--include-late sends them)".to_owned()),
        (exhausted, format!("have been retried {MOST_RETRIES} times")),
        (truncated, "are truncated records".to_owned()),
        (of_others, "are of other pipelines or source topics".to_owned()),
    ] {
        if count > 0 {
            unsent.push(format!("{count} {reason}"));
        }
    }
    let unsent = if unsent.is_empty() { String::new() } else { format!("; not sent: {}", unsent.join(", ")) };
    format!("{} sent to topic {topic}{unsent}", counted(sent, "dead letter"))
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Offset, Partition, Position};

    use super::*;
    use crate::source::kafka::retry::is_of;

    fn letter(value: &[u8]) -> DeadLetter {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        DeadLetter {
            position: Position { partition: Partition(2), offset: Offset(7) },
            timestamp: 1_772_330_400_000,
            key: Some(vec![0xff]),
            value: Some(value.to_vec()),
            headers: vec![
                header(header::REASON, "invalid"),
                header(header::MESSAGE, "user_id is no text"),
                header(header::FIELD, "user_id"),
                header(header::PIPELINE, "fraud"),
                header(header::SOURCE_TOPIC, "payments"),
                header(header::SOURCE_PARTITION, "1"),
                header(header::SOURCE_OFFSET, "9"),
            ],
        }
    }

    #[test]
    fn a_dead_letter_is_always_one_line() {
        assert_eq!(
            line(&letter(b"{\"user_id\":1}\n\x1b[31m\xff")),
            "2:7        payments:1:9         invalid    2026-03-01T02:00:00.000Z     20  user_id       \
             user_id is no text: {\"user_id\":1}\\n\\u{1b}[31m\u{fffd}"
        );
        let long = line(&letter("ä".repeat(100).as_bytes()));
        assert!(long.ends_with(&format!("{}…", "ä".repeat(MAX_DISPLAY))), "{long}");
    }

    #[test]
    fn bytes_are_text_or_base64_in_json() {
        let json = object(&letter(b"{}"));
        assert_eq!((&json["value"], &json["key_base64"]), (&json!("{}"), &json!("/w==")));
        assert_eq!(json["source"]["topic"], "payments");
        let json = object(&letter(b"\xff\x00"));
        assert_eq!((&json["value"], &json["value_base64"]), (&Value::Null, &json!("/wA=")));
    }

    #[test]
    fn dead_letters_of_other_pipelines_and_topics_are_not_retried() {
        let letter = letter(b"{}");
        assert!(is_of(&letter, "fraud", "payments"));
        assert!(!is_of(&letter, "fraud", "clicks") && !is_of(&letter, "other", "payments"));
        assert!(!is_of(&DeadLetter { headers: Vec::new(), ..letter }, "fraud", "payments"));
    }

    #[test]
    fn the_report_counts_unsent_dead_letters_by_reason() {
        let retried = Retried { sent: 3, before: 2, exhausted: 1, ..Retried::default() };
        assert_eq!(
            sentence(&retried, "payments"),
            "3 dead letters sent to topic payments; not sent: 2 were already sent, 1 have been retried 3 times"
        );
        assert_eq!(report(&retried)["skipped"]["sent_before"], 2);
    }
}
