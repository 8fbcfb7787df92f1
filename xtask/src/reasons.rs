//! Files that say why something may be as it is: at the margin a reason, below it, indented, what it
//! holds for. Empty lines and lines that begin with `#` are for readers.

use std::fs;

use crate::project;

/// What a reason holds for, and the reason.
pub(crate) type Entry = (String, String);

/// The entries of a file of this project, in order.
pub(crate) fn read(file: &str) -> Result<Vec<Entry>, String> {
    let text = fs::read_to_string(project::root().join(file))
        .map_err(|error| format!("cannot read {file}: {error}"))?;
    parse(file, &text)
}

pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Entry>, String> {
    let mut reason = None;
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words = line.trim();
        if words.is_empty() || words.starts_with('#') {
            continue;
        }
        if line == line.trim_start() {
            reason = Some(words);
            continue;
        }
        let Some(reason) = reason else {
            return Err(format!(
                "{file}:{number}: `{words}` has no reason above it; begin with one at the margin"
            ));
        };
        entries.push((words.to_owned(), reason.to_owned()));
    }
    Ok(entries)
}
