//! `rfc8684.md` against the tree: every item is there, and what it names exists.

use std::fs;
use std::path::Path;

const ITEMS: usize = 90;
/// Where names are looked for, below the directory of this package.
const CODE: [&str; 2] = ["src", ".."];
const TESTS: [&str; 3] = ["tests", "src", ".."];

/// A line of the table.
struct Row<'a> {
    item: usize,
    status: &'a str,
    reason: Option<&'a str>,
    code: Vec<&'a str>,
    tests: Vec<&'a str>,
}

#[test]
fn every_requirement_has_its_place_and_its_test() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(package.join("rfc8684.md")).expect("the table");
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Item"))
        .map(row);
    let mut faults = Vec::new();
    let mut items = Vec::new();
    for row in rows {
        let mut fault = |what: String| faults.push(format!("item {}: {what}", row.item));
        items.push(row.item);
        let explained = row.reason.is_some_and(|reason| !reason.is_empty());
        let (wants_code, wants_tests, wants_reason) = match row.status {
            "done" => (true, true, false),
            "part" => (true, false, true),
            "missing" | "n/a" => (false, false, true),
            other => {
                fault(format!("{other:?} is no status"));
                continue;
            }
        };
        if explained != wants_reason {
            fault(format!("{} with the reason {:?}", row.status, row.reason));
        }
        if wants_code && row.code.is_empty() || wants_tests && row.tests.is_empty() {
            fault(format!("{} without code or test", row.status));
        }
        for name in &row.code {
            if !exists(package, &CODE, name, defines) {
                fault(format!("there is no code {name}"));
            }
        }
        for name in &row.tests {
            if !exists(package, &TESTS, name, tests) {
                fault(format!("there is no test {name}"));
            }
        }
    }
    assert_eq!(items, (1..=ITEMS).collect::<Vec<_>>());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn row(line: &str) -> Row<'_> {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let ["", item, section, requirement, status, code, tests, ""] = cells[..] else {
        panic!("not six cells: {line}");
    };
    assert!(!section.is_empty() && !requirement.is_empty(), "{line}");
    let (status, reason) = match status.split_once(':') {
        Some((status, reason)) => (status, Some(reason.trim())),
        None => (status, None),
    };
    Row {
        item: item.parse().expect("a number"),
        status,
        reason,
        code: names(code),
        tests: names(tests),
    }
}

/// What stands in backquotes.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Whether one of `places` has the file of `FILE::NAME`, and the name `is_there` in it.
fn exists(package: &Path, places: &[&str], name: &str, is_there: Check) -> bool {
    let Some((file, symbol)) = name.split_once("::") else {
        return false;
    };
    let texts = places
        .iter()
        .map(|place| package.join(place).join(file))
        .filter_map(|path| Some((fs::read_to_string(&path).ok()?, path)));
    texts
        .into_iter()
        .any(|(text, path)| is_there(&path, &text, symbol))
}

type Check = fn(&Path, &str, &str) -> bool;

/// A function, a type, a constant or a field.
fn defines(_: &Path, text: &str, symbol: &str) -> bool {
    text.lines().map(str::trim_start).any(|line| {
        let line = line.strip_prefix("pub").unwrap_or(line);
        let line = match line.strip_prefix('(') {
            Some(visible) => visible.split_once(')').map_or("", |(_, rest)| rest),
            None => line,
        };
        let line = line.trim_start();
        let kinds = [
            "fn ",
            "const fn ",
            "struct ",
            "enum ",
            "trait ",
            "type ",
            "const ",
        ];
        let kind = kinds.iter().find_map(|kind| line.strip_prefix(kind));
        match kind {
            Some(rest) => is_word(rest, symbol),
            None => line
                .strip_prefix(symbol)
                .is_some_and(|rest| rest.starts_with(": ")),
        }
    })
}

/// A test; a check of the simulator or its client, which every run makes; or a case of the veth tests.
fn tests(path: &Path, text: &str, symbol: &str) -> bool {
    let part_of = |directory: &str| path.components().any(|part| part.as_os_str() == directory);
    if part_of("sim") || part_of("model") {
        return defines(path, text, symbol);
    }
    if part_of("veth_tests") {
        // Those that are made for several families or paths are named by their pattern.
        let quoted = [
            format!("Case::new(\"{symbol}\""),
            format!("format!(\"{symbol}\")"),
        ];
        return quoted.iter().any(|quoted| text.contains(quoted));
    }
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    lines.iter().enumerate().any(|(at, line)| {
        let named = line
            .strip_prefix("fn ")
            .is_some_and(|rest| is_word(rest, symbol));
        let mut attributes = lines[..at].iter().rev().take_while(|l| l.starts_with("#["));
        named && attributes.any(|l| l.starts_with("#[test]"))
    })
}

/// `text` begins with the whole word `word`.
fn is_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}
