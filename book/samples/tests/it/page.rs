//! Pages of Markdown: their samples and their links.

use std::path::{Path, PathBuf};

/// A sample.
pub(crate) struct Block {
    /// File and line.
    pub(crate) place: String,
    pub(crate) language: String,
    /// With files that it includes.
    pub(crate) text: String,
}

pub(crate) struct Page {
    /// From the root of the repository.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) blocks: Vec<Block>,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every page of the book, but for its summary, and the README.
pub(crate) fn all() -> Vec<Page> {
    let mut pages = Vec::new();
    let mut open = vec![PathBuf::from("book/src")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(root().join(&directory)).unwrap() {
            let name = entry.unwrap().file_name();
            let path = directory.join(&name);
            if root().join(&path).is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|it| it == "md") && name != "SUMMARY.md" {
                pages.push(path);
            }
        }
    }
    pages.push("README.md".into());
    pages.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        Page::read(path, text)
    };
    pages.into_iter().map(read).collect()
}

impl Page {
    pub(crate) fn read(path: PathBuf, text: String) -> Self {
        let mut blocks: Vec<Block> = Vec::new();
        let mut inside = false;
        for (number, line) in text.lines().enumerate() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                inside = !inside;
                if inside {
                    blocks.push(Block {
                        place: format!("{}:{}", path.display(), number + 1),
                        language: language
                            .split([',', ' '])
                            .next()
                            .unwrap_or_default()
                            .to_owned(),
                        text: String::new(),
                    });
                }
            } else if let (true, Some(block)) = (inside, blocks.last_mut()) {
                let included = line.trim().strip_prefix("{{#include ");
                match included.and_then(|rest| rest.strip_suffix("}}")) {
                    Some(file) => {
                        let directory = path.parent().unwrap_or(Path::new(""));
                        let file = root().join(directory).join(file);
                        let text = std::fs::read_to_string(&file);
                        block.text +=
                            &text.unwrap_or_else(|error| panic!("{}: {error}", block.place));
                    }
                    None => block.text += line,
                }
                block.text.push('\n');
            }
        }
        assert!(!inside, "{}: a sample has no end", path.display());
        Self { path, text, blocks }
    }
}

/// The commands of a sample, each on one line, without comments.
pub(crate) fn commands(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let line = line.split(" #").next().unwrap_or_default();
        // What a pipe or a redirection leads to is not looked at.
        let line = line.split([';', '|', '>']).next().unwrap_or_default();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// The words of a command, with quotes taken off and variables before it left out.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let is_variable = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        })
    };
    let first = words
        .iter()
        .position(|word| !is_variable(word))
        .unwrap_or(words.len());
    words.split_off(first)
}

/// Where the links of a page lead, outside of samples.
pub(crate) fn links(text: &str) -> Vec<String> {
    let mut inside = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    let prose = prose.collect::<Vec<_>>().join("\n");
    let ends = prose.split("](").skip(1);
    ends.filter_map(|rest| rest.split_once(')').map(|(link, _)| link.to_owned()))
        .collect()
}
