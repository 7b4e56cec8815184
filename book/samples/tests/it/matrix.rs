//! Tables of the book that name tests, in their last column: each is there, and no line is
//! without one.

use std::collections::BTreeSet;
use std::path::Path;

use crate::page::root;

/// The names of all functions in the tests and sources below a directory.
fn functions(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !["target", "samples"].contains(&&*name) && !name.starts_with('.') {
                functions(&path, names);
            }
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines() {
                let Some((_, rest)) = line.split_once("fn ") else {
                    continue;
                };
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                names.insert(rest[..end].to_owned());
            }
        }
    }
}

/// A page whose tables begin with lines like these, and have at least so many lines.
fn check(page: &str, heads: &[&str], least: usize) {
    let page = root().join("book/src/operate").join(page);
    let text = std::fs::read_to_string(page).unwrap();
    let mut there = BTreeSet::new();
    functions(&root(), &mut there);
    let lines = text.lines().filter(|line| line.starts_with("| "));
    let lines: Vec<&str> = lines
        .filter(|line| !heads.iter().any(|head| line.starts_with(head)) && !line.starts_with("|-"))
        .collect();
    assert!(lines.len() >= least, "{} lines", lines.len());
    for line in lines {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let last = cells.last().unwrap();
        let named: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {line}");
        for name in named {
            assert!(there.contains(name), "there is no test `{name}`: {line}");
        }
    }
}

#[test]
fn every_line_of_the_matrix_of_failsafes_names_tests_that_are_there() {
    check("failsafe-matrix.md", &["| record"], 51);
}

#[test]
fn every_fault_of_a_node_names_tests_that_are_there() {
    check("agent-faults.md", &["| fault", "| what"], 41);
}
