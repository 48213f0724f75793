//! Lines of comma-separated values.

/// Splits a line into its fields: separated by commas, in quotes if they contain one. A quote in quotes is doubled.
///
/// # Errors
/// If a quote is wrong.
pub fn fields(line: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut rest) = (Vec::new(), line);
    loop {
        let mut field = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let Some((before, after)) = quoted.split_once('"') else {
                    return Err("a quote is not closed in the line".to_owned());
                };
                field += before;
                match after.strip_prefix('"') {
                    Some(more) => (field, quoted) = (field + "\"", more),
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            if !(rest.is_empty() || rest.starts_with(',')) {
                return Err("expected a comma after the closing quote".to_owned());
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field += &rest[..end];
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}
