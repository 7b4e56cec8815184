//! What the book and the README show, looked at: commands are parsed by the program itself,
//! manifests are checked by their kinds, keys are keys, links and files are there.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod matrix;
mod page;

use std::collections::BTreeSet;
use std::path::Path;

use page::{Block, Page, root};
use platctrl_framework::model::{Kinds, schema};
use platctrl_framework::store::{Key, Prefix};
use serde_json::Value;

/// Commands of the machine that samples may use.
const OTHERS: [&str; 12] = [
    "cargo", "cat", "cd", "cp", "curl", "echo", "etcdctl", "consul", "git", "kubectl", "rm", "sudo",
];

#[test]
fn every_page_is_in_the_summary_and_every_page_of_the_summary_is_there() {
    let summary = std::fs::read_to_string(root().join("book/src/SUMMARY.md")).unwrap();
    let listed: BTreeSet<String> = page::links(&summary).into_iter().collect();
    let pages = page::all();
    let there = pages
        .iter()
        .filter_map(|page| page.path.strip_prefix("book/src/").ok());
    let there: BTreeSet<String> = there.map(|path| path.display().to_string()).collect();
    assert_eq!(listed, there);
}

#[test]
fn every_page_with_rust_in_it_is_compiled() {
    let compiled = std::fs::read_to_string(root().join("book/samples/src/lib.rs")).unwrap();
    for page in page::all() {
        if page.blocks.iter().any(|block| block.language == "rust") {
            let name = format!("../../../{}\"", page.path.display());
            let name = name.replace("../../../book/", "../../");
            assert!(
                compiled.contains(&name),
                "{} is not in lib.rs",
                page.path.display()
            );
        }
    }
}

#[test]
fn every_sample_says_in_which_language_it_is_and_rust_is_run() {
    for page in page::all() {
        for block in &page.blocks {
            let known = ["rust", "yaml", "json", "toml", "sh", "text"].contains(&&*block.language);
            assert!(
                known,
                "{}: `{}` is none that is checked",
                block.place, block.language
            );
        }
    }
}

#[test]
fn every_command_is_one_that_the_program_takes() {
    let mut ours = 0;
    each("sh", |block| {
        for line in page::commands(&block.text) {
            let words = page::words(&line);
            let program = words
                .first()
                .map_or("", |word| word.rsplit('/').next().unwrap_or(word));
            match program {
                "platctrl" => {
                    ours += 1;
                    let taken = platctrl::takes(&words);
                    assert!(
                        taken.is_ok(),
                        "{}: {line}\n{}",
                        block.place,
                        taken.unwrap_err()
                    );
                }
                "make" => {
                    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
                    let target = words.iter().skip(1).find(|word| !word.contains('='));
                    let target = format!("\n{}:", target.unwrap());
                    assert!(makefile.contains(&target), "{}: {line}", block.place);
                }
                _ if words
                    .first()
                    .is_some_and(|word| word.starts_with("scripts/")) =>
                {
                    assert!(root().join(&words[0]).exists(), "{}: {line}", block.place);
                }
                other => assert!(
                    OTHERS.contains(&other),
                    "{}: what is `{other}`?",
                    block.place
                ),
            }
        }
    });
    assert!(ours > 5, "{ours} commands were looked at");
}

#[test]
fn every_manifest_is_valid() {
    let kinds = Kinds::new()
        .with::<platctrl_kinds::Pod>()
        .with::<platctrl_kinds::Node>()
        .with::<platctrl_kinds::ReplicationController>()
        .with::<platctrl_kinds::RollingUpdate>()
        .with::<platctrl_kinds::DisruptionBudget>()
        .with::<platctrl_kinds::DaemonSet>()
        .with::<platctrl_kinds::Role>()
        .with::<platctrl_kinds::RoleBinding>();
    let mut checked = 0;
    each("yaml", |block| {
        let objects: Vec<Value> = serde_saphyr::from_multiple(&block.text)
            .unwrap_or_else(|error| panic!("{}: {error}", block.place));
        for object in objects {
            let text = |field: &str| {
                object
                    .get(field)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            // A kind of the reader's own is checked by the sample that makes it.
            let Some(known) = kinds.of_manifest(text("apiVersion"), text("kind")) else {
                assert!(
                    !text("apiVersion").starts_with("platctrl.dev/"),
                    "{}",
                    block.place
                );
                continue;
            };
            checked += 1;
            let mut errors = schema::check_object(&known.definition, &object);
            if let (Some(checks), true) = (&known.checks, errors.is_empty()) {
                errors = checks.validate(&object["spec"]);
            }
            assert!(errors.is_empty(), "{}: {errors:?}", block.place);
        }
    });
    assert!(checked > 0, "no manifest was looked at");
}

#[test]
fn every_json_sample_is_json_and_every_key_is_a_key() {
    each("json", |block| {
        let parsed: Result<Value, _> = serde_json::from_str(&block.text);
        assert!(parsed.is_ok(), "{}: {parsed:?}", block.place);
    });
    let mut keys = 0;
    each("text", |block| {
        for line in block.text.lines() {
            let first = line.split_whitespace().next().unwrap_or_default();
            let named = !first.contains(['<', '…', '{', '[']);
            if (first.starts_with("o/") || first.starts_with("x/")) && named {
                keys += 1;
                let valid = Key::new(first).is_ok() || Prefix::new(first).is_ok();
                assert!(valid, "{}: {first} is no key", block.place);
            }
        }
    });
    assert!(keys > 0, "no key was looked at");
}

#[test]
fn every_link_leads_somewhere() {
    let mut followed = 0;
    for page in page::all() {
        let directory = page.path.parent().unwrap_or(Path::new(""));
        for link in page::links(&page.text) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            followed += 1;
            let path = link.split('#').next().unwrap_or_default();
            let target = root().join(directory).join(path);
            assert!(target.exists(), "{}: {link}", page.path.display());
        }
    }
    assert!(followed > 3, "{followed} links were looked at");
}

fn each(language: &str, mut look: impl FnMut(&Block)) {
    let pages: Vec<Page> = page::all();
    let blocks = pages.iter().flat_map(|page| &page.blocks);
    blocks
        .filter(|block| block.language == language)
        .for_each(&mut look);
}

#[test]
fn what_is_wrong_in_a_page_is_seen() {
    assert!(platctrl::takes(&["platctrl", "get", "pods"].map(str::to_owned)).is_ok());
    for wrong in [
        &["platctrl", "gte", "pods"][..],
        &["platctrl", "get", "--nonsense"],
    ] {
        let words: Vec<String> = wrong.iter().map(|&word| word.to_owned()).collect();
        assert!(platctrl::takes(&words).is_err(), "{wrong:?}");
    }
    let page = Page::read(
        Path::new("x.md").to_owned(),
        "a\n```sh\nplatctrl get \\\n  pods # all\n$ make x\n```\n[b](c.md)".into(),
    );
    assert_eq!(page.blocks[0].language, "sh");
    let commands = page::commands(&page.blocks[0].text);
    assert_eq!(commands, ["platctrl get pods", "make x"]);
    assert_eq!(page::links(&page.text), ["c.md"]);
    assert_eq!(page::words("a 'b c' \"d\"e"), ["a", "b c", "de"]);
}
