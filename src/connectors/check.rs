//! The result of testing a connection, a file or a permission.

use std::error::Error;
use std::path::Path;

use headwater_sinks::{Misconfigured, Secret, postgres};
use serde_json::{Value, json};

pub(crate) type Outcome = Result<String, Box<dyn Error + Send + Sync>>;

/// The result of one check.
pub(crate) struct Check {
    /// The section of the configuration that was checked.
    section: String,
    /// The resource that was checked, and its location.
    what: String,
    /// The finding, or the failure.
    pub outcome: Outcome,
}

impl Check {
    pub fn of<E>(section: impl Into<String>, what: impl Into<String>, outcome: Result<String, E>) -> Check
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Check { section: section.into(), what: what.into(), outcome: outcome.map_err(Into::into) }
    }

    pub fn text(&self) -> String {
        let (word, detail) = self.result();
        format!("{word:<6} {:<14} {}: {detail}\n", self.section, self.what)
    }

    pub fn json(&self) -> Value {
        let (_, detail) = self.result();
        json!({ "section": self.section, "what": self.what, "ok": self.outcome.is_ok(), "detail": detail })
    }

    fn result(&self) -> (&'static str, String) {
        match &self.outcome {
            Ok(detail) => ("ok", detail.clone()),
            Err(error) => ("failed", causes(&**error)),
        }
    }

    /// Returns true if the configuration is the cause of the failure.
    pub fn is_misconfigured(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = match &self.outcome {
            Ok(_) => None,
            Err(error) => Some(&**error),
        };
        while let Some(error) = cause {
            if error.is::<Misconfigured>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Returns an error with its causes, without repetitions.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text += &format!(": {message}");
        }
        cause = error.source();
    }
    text
}

/// Returns a number with its noun, such as `1 epoch` or `2 epochs`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Describes the tables of a database, without its password.
pub(crate) fn databases(url: &Secret) -> String {
    match postgres::Target::parse(url.expose()) {
        Ok(target) => format!("tables in database {} at {}", target.database(), target.hosts()),
        Err(_) => "tables".to_owned(),
    }
}

/// Checks that a file or directory can be written or created. The file that the check creates is removed.
pub(crate) fn writable(path: &Path) -> Outcome {
    if path.is_file() {
        let opened = std::fs::OpenOptions::new().append(true).open(path);
        return opened.map(|_| "writable".to_owned()).map_err(|error| format!("{error}").into());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let (directory, result) = match path.is_dir() {
        true => (path, "writable"),
        false => (parent.unwrap_or(Path::new(".")), "can be created"),
    };
    let probe = directory.join(format!(".headwater-check-{}", std::process::id()));
    let created = std::fs::File::create_new(&probe).and_then(|_| std::fs::remove_file(&probe));
    created.map(|()| result.to_owned()).map_err(|error| {
        format!(
            "cannot create a file in {}: {error}; create the directory, or grant write permission",
            directory.display()
        )
        .into()
    })
}
