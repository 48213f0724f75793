//! Rules in files of their own: the same as in the configuration, and errors that name the files.

use std::path::Path;

use super::*;
use crate::config::Config;

const HEAD: &str = "pipeline = \"p\"\n";
const SOURCE: &str = "[source]\nkind = \"generator\"\n";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    folder
}

fn rule(id: &str) -> String {
    format!("[[rules]]\nid = \"{id}\"\ncount = {{ at_least = 2, within = \"1m\" }}\n")
}

/// Parses a configuration that begins with these lines and a list of rules, in which `DIR` is the folder.
fn parse(rules: &str, folder: &Path, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let folder = folder.display().to_string();
    let text = format!("{HEAD}{}\n{SOURCE}", rules.replace("DIR", &folder));
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), value.replace("DIR", &folder)));
    Config::parse_without_sinks(&text, environment)
        .map_err(|errors| errors.0.iter().map(|error| error.to_string().replace(&folder, "DIR")).collect())
}

fn ids(config: &Config) -> Vec<&str> {
    config.plan.rules.iter().map(|rule| &*rule.id).collect()
}

#[test]
fn rules_of_files_are_as_if_they_were_in_the_configuration() {
    let both = rule("b") + &rule("c");
    let dir = folder(&[
        ("z.toml", &rule("a")),
        ("m.toml", &both),
        ("m_test.toml", "rules = \"m.toml\"\n"),
        (".hidden.toml", "no TOML"),
        ("empty.toml", "# none\n"),
        ("other.txt", "no TOML"),
    ]);
    std::fs::create_dir(dir.path().join("folder.toml")).expect("created");
    let inline = "{ id = \"d\", count = { at_least = 2, within = \"1m\" } }";
    let here = Config::parse_without_sinks(
        &format!("{HEAD}{SOURCE}{both}{}{}", rule("a"), rule("d")),
        std::iter::empty(),
    )
    .expect("valid");
    for (list, environment) in [
        (format!("rules = [\"DIR/*.toml\", {inline}]"), vec![]),
        (format!("rules = [\"DIR/m.toml\", \"DIR/*.toml\", {inline}]"), vec![]),
        (format!("rules = [\"${{FOLDER}}/*.toml\", {inline}]"), vec![("FOLDER", "DIR")]),
        (String::new(), vec![("HEADWATER__RULES", &*format!("[\"DIR/*.toml\", {inline}]"))]),
    ] {
        let config =
            parse(&list, dir.path(), &environment).unwrap_or_else(|errors| panic!("{list}: {errors:?}"));
        assert_eq!(config.effective(), here.effective(), "{list}");
        assert_eq!(config.semantics(), here.semantics(), "{list}");
        let states = |config: &Config| config.plan.rules.iter().map(|rule| rule.state_id).collect::<Vec<_>>();
        assert_eq!(states(&config), states(&here), "{list}");
    }
    let one = parse("", dir.path(), &[("HEADWATER__RULES", "DIR/z.toml")]).expect("valid");
    assert_eq!(ids(&one), ["a"], "one path needs no list");
}

#[test]
fn errors_name_the_file_and_the_line() {
    let dir = folder(&[
        ("a.toml", &(rule("a") + "colour = 1\n")),
        (
            "b.toml",
            &("\n\n".to_owned()
                + &rule("b")
                + "where = \"event.amuont > 1.0\"\n[fields]\nevent_time = \"t\"\n"),
        ),
        ("c.toml", "[[rule]]\nid = \"c\"\n"),
        ("d.toml", "rules = [\"e.toml\"]\n"),
        ("e.toml", "[rules]\nid = \"e\"\n"),
        ("f.toml", "id = \n"),
        ("g.toml", &(rule("a") + "description = \"${NOT_SET}\"\n")),
    ]);
    let errors = parse("rules = [\"DIR/*.toml\"]", dir.path(), &[]).expect_err("errors");
    assert_eq!(
        errors,
        [
            "DIR/a.toml line 4: rules[0].colour: unknown key; known keys: backfill, by, count, description, emit, id, mode, \
             severity, suppress, where",
            "DIR/b.toml line 6: rules[1].where: column 7: unknown field amuont; did you mean amount?, in: event.amuont > 1.0",
            "DIR/b.toml line 7: fields: a file of rules has only sections [[rules]]; move this to the configuration that names \
             the file",
            "DIR/c.toml line 1: rule: a file of rules has only sections [[rules]]; did you mean rules?",
            "DIR/d.toml line 1: rules: a file of rules names no further files; name them in the configuration",
            "DIR/e.toml line 1: rules: expected sections [[rules]], got a table",
            "DIR/f.toml line 1: the file: string values must be quoted, expected literal string",
            "DIR/g.toml line 2: rules[2].id: two rules have the id a",
            "DIR/g.toml line 4: rules[2].description: the environment variable NOT_SET is not set; write $${ for the \
             characters ${",
        ]
    );
}

#[test]
fn a_path_without_a_file_is_an_error() {
    let dir = folder(&[("a.toml", &rule("a"))]);
    let error = |list: &str| parse(list, dir.path(), &[]).expect_err(list).join("\n");
    for (list, expected) in [
        (
            "rules = [\"DIR/*.tml\"]",
            "line 2: rules: no file matches \"DIR/*.tml\"; correct the path, or remove it",
        ),
        (
            "rules = [\"DIR/none.toml\"]",
            "line 2: rules: cannot read DIR/none.toml: No such file or directory (os error 2)",
        ),
        (
            "rules = [\"DIR/no/*\"]",
            "line 2: rules: cannot read the folder DIR/no: No such file or directory (os error 2)",
        ),
        ("rules = [\"DIR\"]", "line 2: rules: cannot read DIR: Is a directory (os error 21)"),
        (
            "rules = [\"*/a.toml\"]",
            "line 2: rules: \"*/a.toml\": only the last segment of a path can contain `*`, as in \"rules/*.toml\"; name each \
             folder",
        ),
        ("rules = [\"\"]", "line 2: rules: expected the path of a file with [[rules]], got \"\""),
        (
            "rules = [\"${NOT_SET}/*\"]",
            "line 2: rules[0]: the environment variable NOT_SET is not set; write $${ for the characters ${",
        ),
        ("rules = 3", "line 2: rules: expected sections [[rules]], got a number"),
        ("rules = [3]", "line 2: rules[0]: expected a section, got a number"),
    ] {
        assert_eq!(error(list), expected, "{list}");
    }
    let relative = error("rules = [\"no-such-folder/*\"]");
    assert!(relative.contains("(relative to the working directory /"), "{relative}");
}

#[test]
fn an_unset_variable_of_a_file_counts_as_used_when_it_is_set() {
    let dir = folder(&[("a.toml", &(rule("a") + "description = \"${HEADWATER_TEAM}\"\n"))]);
    let config = parse("rules = [\"DIR/a.toml\"]", dir.path(), &[("HEADWATER_TEAM", "risk")]).expect("valid");
    assert_eq!(config.plan.rules[0].description.as_deref(), Some("risk"));
}

#[test]
fn a_star_stands_for_any_characters() {
    for (pattern, names, others) in [
        ("*.toml", &["a.toml", "a.b.toml"][..], &["a.tom", ".toml", "a_test.toml", "a.test.toml"][..]),
        ("a*b*c", &["abc", "axbyc", "abbcc"], &["ab", "xabc", "acb"]),
        ("ab*ba", &["abba", "abxba"], &["aba"]),
        ("*", &["a", "b.txt"], &[".a"]),
        ("a**", &["a", "ab"], &["b"]),
    ] {
        for name in names {
            assert!(is_match(pattern, name), "{pattern} {name}");
        }
        for name in others {
            assert!(!is_match(pattern, name), "{pattern} {name}");
        }
    }
}
