//! Databases with the tables of sinks, as they are read back for people: statements, and sessions that give up in time.
//!
//! ```text
//!   Statement, with `?` for each parameter ─┬▶ sqlite: the same text ─────────────▶ Connection
//!                                           └▶ postgres: `$1`, `$2::bigint`, … ───▶ Session
//! ```

pub mod postgres;
pub mod sqlite;

/// A parameter of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// Text.
    Text(String),
    /// A time, as the database reads it.
    Time(String),
    /// An integer.
    Int(i64),
}

/// A statement under construction. In its text, `?` stands for the next parameter.
#[derive(Clone, Debug, Default)]
pub struct Statement {
    text: String,
    parameters: Vec<Parameter>,
    has_condition: bool,
}

impl Statement {
    /// Returns a statement without parameters.
    pub fn new(text: impl Into<String>) -> Statement {
        Statement { text: text.into(), ..Statement::default() }
    }

    /// Adds text with parameters.
    pub fn add(&mut self, text: &str, parameters: impl IntoIterator<Item = Parameter>) {
        self.text += text;
        self.parameters.extend(parameters);
    }

    /// Adds a condition, which all rows must meet.
    pub fn condition(&mut self, text: &str, parameters: impl IntoIterator<Item = Parameter>) {
        self.text += if self.has_condition { " AND " } else { " WHERE " };
        self.has_condition = true;
        self.add(text, parameters);
    }

    /// Adds a maximum number of rows.
    pub fn limit(&mut self, limit: usize) {
        self.add(" LIMIT ?", [Parameter::Int(i64::try_from(limit).unwrap_or(i64::MAX))]);
    }

    /// Returns the text for SQLite.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the parameters, in the order of their places in the text.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns the text for PostgreSQL, which needs numbered parameters with their types.
    pub fn numbered(&self) -> String {
        let mut parameters = self.parameters.iter().zip(1..);
        let mut text = String::new();
        for (at, piece) in self.text.split('?').enumerate() {
            if at > 0 {
                let (parameter, number) = parameters.next().expect("each ? has a parameter");
                text += &match parameter {
                    Parameter::Text(_) => format!("${number}"),
                    Parameter::Time(_) => format!("${number}::text::timestamptz"),
                    Parameter::Int(_) => format!("${number}::bigint"),
                };
            }
            text += piece;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_postgresql_have_numbers_and_types() {
        let mut statement = Statement::new("SELECT 1 FROM t");
        statement.condition("reason = ?", [Parameter::Text("it's".to_owned())]);
        statement.condition("(at, n) < (?, ?)", [Parameter::Time("now".to_owned()), Parameter::Int(2)]);
        statement.limit(3);
        assert_eq!(statement.text(), "SELECT 1 FROM t WHERE reason = ? AND (at, n) < (?, ?) LIMIT ?");
        assert_eq!(
            statement.numbered(),
            "SELECT 1 FROM t WHERE reason = $1 AND (at, n) < ($2::text::timestamptz, $3::bigint) LIMIT $4::bigint"
        );
    }
}
