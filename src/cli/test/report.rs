//! The results of tests: as text, JSON and JUnit XML.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::compare::Difference;
use crate::cli::output::counted;

/// The result of a test.
#[derive(Debug)]
pub struct Outcome {
    /// The name of the test.
    pub name: String,
    /// The line of the name.
    pub line: usize,
    /// The differences from the expectations; none if the test passes.
    pub differences: Vec<Difference>,
    /// The wall time of the test.
    pub took: Duration,
}

/// The results of the tests of a file.
#[derive(Debug)]
pub struct FileOutcome {
    /// The path.
    pub path: PathBuf,
    /// The results of its tests.
    pub tests: Vec<Outcome>,
}

impl Outcome {
    fn passed(&self) -> bool {
        self.differences.is_empty()
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.differences.iter().flat_map(Difference::lines)
    }
}

/// Returns the numbers of passed and failed tests.
pub fn counts(files: &[FileOutcome]) -> (usize, usize) {
    let all = || files.iter().flat_map(|file| &file.tests);
    let passed = all().filter(|test| test.passed()).count();
    (passed, all().count() - passed)
}

/// Returns the results as text.
pub fn text(files: &[FileOutcome]) -> String {
    let mut text = String::new();
    let mut failed_any = false;
    for FileOutcome { path, tests } in files {
        let failed: Vec<_> = tests.iter().filter(|test| !test.passed()).collect();
        let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
        line(
            &mut text,
            format_args!("{verdict:<6} {}: {}", path.display(), counted(tests.len() as u64, "test")),
        );
        for test in failed {
            failed_any = true;
            line(&mut text, format_args!("  {}:{}: {}", path.display(), test.line, test.name));
            test.lines().for_each(|difference| line(&mut text, format_args!("    {difference}")));
        }
    }
    let (passed, failed) = counts(files);
    if failed_any {
        line(&mut text, format_args!("(- expected and missing, + came and not expected)"));
    }
    line(&mut text, format_args!("{passed} passed, {failed} failed"));
    text
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("a String can be written");
}

/// Returns the results as one JSON object.
pub fn json(files: &[FileOutcome]) -> Value {
    let (passed, failed) = counts(files);
    let files = files.iter().map(|file| {
        let tests = file.tests.iter().map(|test| {
            json!({
                "name": test.name,
                "line": test.line,
                "passed": test.passed(),
                "differences": test.differences.iter().map(Difference::json).collect::<Vec<_>>(),
            })
        });
        json!({ "file": file.path.display().to_string(), "tests": tests.collect::<Vec<_>>() })
    });
    json!({ "passed": passed, "failed": failed, "files": files.collect::<Vec<_>>() })
}

/// Returns the results as JUnit XML: a suite for each file.
pub fn junit(files: &[FileOutcome]) -> String {
    let seconds = |tests: &[Outcome]| tests.iter().map(|test| test.took.as_secs_f64()).sum::<f64>();
    let (passed, failed) = counts(files);
    let whole: f64 = files.iter().map(|file| seconds(&file.tests)).sum();
    let mut xml = String::new();
    line(&mut xml, format_args!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"));
    line(
        &mut xml,
        format_args!(
            "<testsuites name=\"headwater test\" tests=\"{}\" failures=\"{failed}\" errors=\"0\" time=\"{whole:.3}\">",
            passed + failed
        ),
    );
    for FileOutcome { path, tests } in files {
        let file = escaped(&path.display().to_string());
        let failures = tests.iter().filter(|test| !test.passed()).count();
        line(
            &mut xml,
            format_args!(
                "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"0\" time=\"{:.3}\">",
                tests.len(),
                seconds(tests)
            ),
        );
        for test in tests {
            let (name, took) = (escaped(&test.name), test.took.as_secs_f64());
            let case = format!(
                "    <testcase name=\"{name}\" classname=\"{file}\" file=\"{file}\" line=\"{}\" time=\"{took:.3}\"",
                test.line
            );
            if test.passed() {
                line(&mut xml, format_args!("{case}/>"));
                continue;
            }
            let differences = test.lines().collect::<Vec<_>>().join("\n");
            let message = counted(test.differences.len() as u64, "difference");
            line(&mut xml, format_args!("{case}>"));
            line(
                &mut xml,
                format_args!("      <failure message=\"{message}\">{}</failure>", escaped(&differences)),
            );
            line(&mut xml, format_args!("    </testcase>"));
        }
        line(&mut xml, format_args!("  </testsuite>"));
    }
    line(&mut xml, format_args!("</testsuites>"));
    xml
}

/// Escapes text for an attribute or the content of an element. Characters that XML does not permit are replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c < ' ' || ('\u{fffe}'..='\u{ffff}').contains(&c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_is_escaped() {
        let difference = Difference {
            line: None,
            expected: None,
            actual: Some(vec![("key", "<&\"\u{1}".into())]),
            members: Vec::new(),
        };
        let test = |name: &str, differences| Outcome {
            name: name.to_owned(),
            line: 3,
            differences,
            took: Duration::from_millis(1500),
        };
        let tests = vec![test("a < b", vec![difference]), test("c", Vec::new())];
        let files = [FileOutcome { path: "x_test.toml".into(), tests }];
        let xml = junit(&files);
        assert!(xml.contains("tests=\"2\" failures=\"1\" errors=\"0\" time=\"3.000\""), "{xml}");
        assert!(xml.contains(
            "<testcase name=\"a &lt; b\" classname=\"x_test.toml\" file=\"x_test.toml\" line=\"3\""
        ));
        assert!(xml.contains("+ { key = &quot;&lt;&amp;\\&quot;\\u0001&quot; }</failure>"), "{xml}");
        assert_eq!(counts(&files), (1, 1));
    }
}
